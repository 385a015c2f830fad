"""Memory: mapped regions, the arena of slots carved out of one, and the state machine of a slot."""
