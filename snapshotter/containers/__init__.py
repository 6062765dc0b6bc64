"""Running a command on an image, with an OCI runtime (runc or crun) and without a daemon.

``run`` is the part in the caller's process: it keeps the record and waits. Everything else happens
in a *supervisor*, a child in mount and pid namespaces of its own (and a user namespace for ordinary
users), so that mounts and processes end with it, whatever it dies of.
"""
