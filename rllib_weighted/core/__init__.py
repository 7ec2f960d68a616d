"""What driver, env runners and learners share."""
