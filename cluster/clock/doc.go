// Package clock is the cluster's time on this device: what certificates, tokens,
// leases, controllers and the API reckon with.
//
// It is not what Pods see: their clock is the system's. It is no NTP client either:
// where one runs, and the kernel says that the clock is synchronised, this package
// only reads.
//
// [Clock.Now] is the system's clock, or ahead of it by an offset that this device
// took from the others. Durations are measured with package time.
//
// # The last known time
//
// Boards without a battery start in 1970. [Open] never lets the clock run before
// the build and what was known last: the newest time of change of the store's
// files, which are written for other reasons, and of an empty file `clock`, of
// which [Clock.Close] sets that time. A device writes nothing for its clock while it
// runs. After a power cut the clock goes on from the last write.
//
// # Time from the others
//
// Each device tells its reading to the leader, and is told what the devices agree on:
// the median of those whose clocks are synchronised, if there are any, else of those
// that somebody set, else of all; of two in the middle the later one, since a clock
// that was reset is behind. A device whose own clock is not synchronised and off by
// more than [Bound] follows. A leader says so when it has heard of everybody, or has
// led for [gather], and asks all when what they agree on has changed, which has them ask.
//
// The system's clock is set by [Auto] if nobody else has set it: at start it was before
// the build or what was known last. By [Always] it is set whenever this device
// follows, by [Never] never. Otherwise the offset is kept here, until the system's
// clock is set or synchronised.
//
// # Messages, version 1
//
// A question and an answer, little endian; what is longer is of a later version:
//
//	question  version byte, quality byte, reading int64 (Unix nanoseconds)
//	answer    version byte, quality byte of what is agreed, 0 for nothing yet,
//	          reading int64, offset of what is agreed to it int64 (nanoseconds)
//
// Goroutines: [Clock.Run] is one, and one that waits for the kernel to tell that the
// clock was set; both end with its context. A Clock's methods may be called from any
// goroutine.
//
// May be imported by cmd/edged. Sources: settimeofday(2), adjtimex(2),
// timerfd_create(2).
package clock
