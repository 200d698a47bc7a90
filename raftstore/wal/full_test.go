package wal

import "golang.org/x/sys/unix"

var errFull error = unix.ENOSPC
