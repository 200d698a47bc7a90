// Package cronjob makes Jobs at the times that CronJobs name.
//
// It runs no Pod (controller/job does).
//
// Types: Reconcile is the decision: a World in, a Plan out. Due finds the time
// that a Job is due for.
//
// Promises: a time that passed while nobody looked makes one Job, however many
// were missed, so that a clock that goes from 1970 to today starts no more than
// one of each. A clock that was far in the future and is set right does not
// silence a CronJob until that future: times are counted from when this was
// seen. A Job is named by its minute, so that no minute has two. Reconcile is a
// function of its arguments. It owns all of a CronJob's status. At rest nothing
// runs but a timer for the next time, at most MaxWait long, since timers do not
// see a clock that is set.
//
// Dangers: time zones are those of the device, or of the binary where it has
// none.
//
// Goroutines: those of the loop.Queue. May be imported by: controller.
//
// Sources: k8s.io/kubernetes/pkg/controller/cronjob for behavior and words;
// github.com/robfig/cron/v3, upstream's parser, which validation links anyway.
package cronjob
