"""The env-runner side: seeds, worker identity, rounds."""
