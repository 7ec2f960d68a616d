"""The learner side: per-worker losses, merged minibatch steps, learner and learner group."""
