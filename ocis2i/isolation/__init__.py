"""The parent's side of running things in containers: the agent and the executors."""
