// Package cache stands in for a module that etcd's tests require and that is
// not published; no test used here imports it.
package cache
