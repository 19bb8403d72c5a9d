"""What is fastest, as measured: found by `search`, kept on disk by `table`, and taken by "auto" through `choice`."""
