"""The options that others take, for tests that they are taken here as well."""

from __future__ import annotations

OPTIONS_OF_FUSE_OVERLAYFS = [
    "redirect_dir=off", "uidmapping=0:0:100000", "gidmapping=0:0:100000", "squash_to_root",
    "squash_to_uid=3", "squash_to_gid=3", "xattr_permissions=0", "xattr_permissions=1",
    "xattr_permissions=2", "timeout=0", "timeout=0.5", "writeback=0", "writeback=1", "fsync=0",
    "fsync=1", "sync=1", "volatile", "threaded=0", "threaded=1", "fast_ino=1", "fast_ino_check=0",
    "ino32_t", "static_nlink", "noacl", "noxattrs=1", "plugins=", "allow_root", "allow_other",
    "default_permissions", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "atime", "noatime",
    "diratime", "nodiratime", "splice_write", "splice_read", "splice_move", "kernel_cache",
    "max_write=65536", "ro", "rw", "fsname=name", "clone_fd", "max_idle_threads=5",
    "auto_unmount",
]  # fmt: skip

OPTIONS_OF_MOUNT = [
    "defaults", "auto", "noauto", "nofail", "_netdev", "user", "user=somebody", "users", "nouser",
    "owner", "group", "x-systemd.automount", "x-systemd.requires=/srv", "X-mount.mkdir",
    "comment=a b", "relatime", "norelatime", "strictatime", "nostrictatime", "lazytime",
    "nolazytime", "nosymfollow", "symfollow", "silent", "loud", "mand", "nomand", "iversion",
    "sync", "async", "dirsync", "context=a:b:c", "fscontext=a:b:c", "defcontext=a:b:c",
    "rootcontext=a:b:c", "xino=auto", "index=on", "userxattr",
]  # fmt: skip
