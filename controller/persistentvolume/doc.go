// Package persistentvolume binds PersistentVolumeClaims to PersistentVolumes and keeps
// both while they are used.
//
// It makes no volume: who a claim's StorageClass names is asked by an annotation, and
// makes the PersistentVolume. For edged's own class that is the device that the
// scheduler chose (runtime/localpath), which also removes the volume's folder. Volumes
// that a class binds with their Pod are chosen by the scheduler.
//
// Claim and Volume are the decisions: functions of what is there, to one step.
//
// Promises: a volume has one claim. The volume is written first, then the claim, each
// compared with what the decision saw, so that a leader that dies in between is
// followed by one that goes on from there. At rest nothing is written; what an Event
// said is not said again while nothing else is to be said of that claim.
//
// Nothing is looked at by a period, as upstream does every 15 seconds: claims that
// wait are looked at when a volume, a class or a Pod of theirs changes.
//
// Goroutines: those of the loop.Queue, with one worker, since two claims must not
// choose one volume. May be imported by: controller.
//
// Sources: k8s.io/kubernetes/pkg/controller/volume/{persistentvolume,pvcprotection,
// pvprotection}.
package persistentvolume
