// Package manifests brings the objects of a folder's files into the cluster, so
// that a device that was just flashed comes up with its workload.
//
// It is not a controller: it runs on every device that has the folder, leader or
// not, and does not watch the objects. It is no file source of static Pods
// either: what it makes are ordinary objects, which the cluster keeps when the
// file or the device is gone.
//
// # Types
//
// An [Applier] applies what lies in its folder when it starts and whenever that
// changes. Parse turns a file into objects.
//
// # Promises
//
//   - Files are those that end in .yaml, .yml or .json and do not begin with a
//     dot, in the order of their names; subfolders are not looked into. The folder
//     need not exist and may come, go and be replaced.
//   - Objects are applied on the server side as field manager [FieldManager], and
//     the file wins: fields that others hold become the file's. Fields that a file
//     no longer has go. What is as the file says is not written: devices that have
//     the same files do not disturb each other, in whatever order they start.
//   - A file is applied only if all of it can be read as objects, and not while
//     somebody writes it.
//   - What the API refuses is tried again, at once if others were accepted
//     meanwhile (a Namespace, a CustomResourceDefinition), else after a back-off
//     from 250 ms to 5 min, however long it takes.
//   - Removing a file removes no object. A folder that is lost or half copied must
//     not take a workload with it.
//
// # Dangers
//
// A file cut short by something other than an open writer, say a power cut, may
// still be a file of whole objects, fewer or with less in them. Write beside and
// rename, as the boot partition's copy does.
//
// # Goroutines
//
// Run is one, asleep without changes and failures; it owns another that reads
// inotify. Both end with Run's context.
//
// May be imported by cmd/edged. Source of the semantics: KEP-555 (server-side
// apply).
package manifests
