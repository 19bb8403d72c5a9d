"""The lab: a course from an empty .cu file to the top of the ladder."""
