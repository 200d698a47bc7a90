// Package loop is what every controller runs in: a queue of keys and the
// things that its reconciling needs from outside.
//
// It is not a controller and knows no kind of object. A controller subscribes
// to what it watches, puts the keys of what may have to change into a Queue,
// and gives the Queue a function that brings one key's world into order.
//
// Types: Queue holds each key at most once; Env is what a controller gets.
//
// Promises: a key is never worked on twice at the same time; a key that was
// added while it was worked on runs again; errors are tried again after a time
// that doubles from 5 ms to 5 minutes; nothing runs, and no timer is set, when
// no key is due.
//
// Bounds: one small record per key, dropped as soon as the key is neither
// waiting nor failing, so that memory follows the number of objects that are
// busy. Add never blocks: it is called from the cache's goroutine.
//
// Goroutines: Queue.Run is one, plus at most Workers while keys are worked on;
// it returns after all have ended, when its context ends.
//
// May be imported by: controller, controller/..., cmd/edged.
//
// Sources: k8s.io/client-go/util/workqueue, for the rules about keys.
package loop
