"""What a user meets: the verbs, the command line, the reports. Nothing else in the house imports this room."""
