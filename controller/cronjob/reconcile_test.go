package cronjob

import (
	"fmt"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

func at(s string) time.Time {
	t, err := time.Parse("2006-01-02 15:04:05", s)
	if err != nil {
		panic(err)
	}
	return t
}

func newCron(schedule string, edit ...func(*batchv1.CronJob)) *batchv1.CronJob {
	cj := &batchv1.CronJob{ObjectMeta: metav1.ObjectMeta{Name: "c", Namespace: "ns", UID: "cron", CreationTimestamp: metav1.NewTime(at("2026-05-01 00:00:00"))}}
	cj.Spec.Schedule = schedule
	for _, e := range edit {
		e(cj)
	}
	return cj
}

func TestDue(t *testing.T) {
	for _, tc := range []struct{ name, schedule, since, now, want string }{
		{"not yet", "0 * * * *", "2026-05-01 00:10:00", "2026-05-01 00:59:59", "- 0"},
		{"now", "0 * * * *", "2026-05-01 00:10:00", "2026-05-01 01:00:00", "2026-05-01 01:00:00 0"},
		{"the latest of a few", "0 * * * *", "2026-05-01 00:10:00", "2026-05-01 05:30:00", "2026-05-01 05:00:00 5"},
		{"a clock that was at 1970", "* * * * *", "1970-01-01 00:00:00", "2026-05-01 00:00:30", "2026-05-01 00:00:00 29626560"},
		{"uneven, in a gap", "30 6-16/4 * * 1-5", "2026-04-01 00:00:00", "2026-05-03 12:00:00", "2026-05-01 14:30:00 194"},
		{"once a year", "0 0 29 2 *", "2020-03-01 00:00:00", "2026-05-01 00:00:00", "2024-02-29 00:00:00 0"},
		{"every", "@every 90s", "2026-05-01 00:00:00", "2026-05-01 00:05:00", "2026-05-01 00:04:30 3"},
		{"a time zone", "TZ=Asia/Tokyo 0 9 * * *", "2026-05-01 00:10:00", "2026-05-02 00:10:00", "2026-05-02 00:00:00 0"},
		{"never", "0 0 31 2 *", "2026-05-01 00:00:00", "2026-05-02 00:00:00", "it names no time"},
	} {
		schedule, err := parse(newCron(tc.schedule))
		if err != nil {
			t.Fatal(err)
		}
		due, missed, err := Due(schedule, at(tc.since), at(tc.now))
		got := fmt.Sprintf("- %d", missed)
		if !due.IsZero() {
			got = fmt.Sprintf("%s %d", due.UTC().Format("2006-01-02 15:04:05"), missed)
		}
		if err != nil {
			got = err.Error()
		}
		if got != tc.want {
			t.Errorf("%s: got %q, want %q", tc.name, got, tc.want)
		}
	}
}

func TestScheduleThatPanicsTheParser(t *testing.T) {
	if _, err := parse(newCron("TZ=0")); err == nil {
		t.Error("no error")
	}
}

func job(name string, end batchv1.JobConditionType, started string) *batchv1.Job {
	j := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns", UID: types.UID(name)}}
	start := metav1.NewTime(at(started))
	j.Status.StartTime = &start
	if end != "" {
		j.Status.Conditions = []batchv1.JobCondition{{Type: end, Status: corev1.ConditionTrue}}
		j.Status.CompletionTime = &start
	}
	return j
}

func active(names ...string) func(*batchv1.CronJob) {
	return func(cj *batchv1.CronJob) {
		for _, n := range names {
			cj.Status.Active = append(cj.Status.Active, corev1.ObjectReference{Name: n, UID: types.UID(n)})
		}
	}
}

func TestReconcile(t *testing.T) {
	const noon = "2026-05-01 12:00:00"
	last := func(s string) func(*batchv1.CronJob) {
		return func(cj *batchv1.CronJob) { cj.Status.LastScheduleTime = ptr.To(metav1.NewTime(at(s))) }
	}
	policy := func(p batchv1.ConcurrencyPolicy) func(*batchv1.CronJob) {
		return func(cj *batchv1.CronJob) { cj.Spec.ConcurrencyPolicy = p }
	}
	for _, tc := range []struct {
		name string
		cron *batchv1.CronJob
		jobs []*batchv1.Job
		now  string
		want string // start, replaced, deleted, active, events
	}{
		{"starts", newCron("0 * * * *", last("2026-05-01 11:00:00")), nil, noon, "start 12:00:00"},
		{"done already", newCron("0 * * * *", last(noon)), nil, "2026-05-01 12:00:20", ""},
		{"suspended", newCron("0 * * * *", func(cj *batchv1.CronJob) { cj.Spec.Suspend = ptr.To(true) }), nil, noon, ""},
		{"too late", newCron("0 * * * *", last("2026-05-01 11:00:00"), func(cj *batchv1.CronJob) { cj.Spec.StartingDeadlineSeconds = ptr.To[int64](10) }), nil, "2026-05-01 12:00:11", ""},
		{"in time", newCron("0 * * * *", last("2026-05-01 11:00:00"), func(cj *batchv1.CronJob) { cj.Spec.StartingDeadlineSeconds = ptr.To[int64](10) }), nil, "2026-05-01 12:00:09", "start 12:00:00"},
		{"forbidden beside another", newCron("0 * * * *", last("2026-05-01 11:00:00"), policy(batchv1.ForbidConcurrent), active("a")), []*batchv1.Job{job("a", "", "2026-05-01 11:00:00")}, noon, "active a JobAlreadyActive"},
		{"forbidden no more", newCron("0 * * * *", last("2026-05-01 11:00:00"), policy(batchv1.ForbidConcurrent), active("a")), []*batchv1.Job{job("a", batchv1.JobComplete, "2026-05-01 11:00:00")}, noon, "start 12:00:00 SawCompletedJob"},
		{"replaces", newCron("0 * * * *", last("2026-05-01 11:00:00"), policy(batchv1.ReplaceConcurrent), active("a")), []*batchv1.Job{job("a", "", "2026-05-01 11:00:00")}, noon, "start 12:00:00 replace a active a"},
		{"beside another", newCron("0 * * * *", last("2026-05-01 11:00:00"), active("a")), []*batchv1.Job{job("a", "", "2026-05-01 11:00:00")}, noon, "start 12:00:00 active a"},
		{"lost a Job", newCron("0 * * * *", last(noon), active("a")), nil, noon, "MissingJob"},
		{"history", newCron("0 * * * *", last(noon), func(cj *batchv1.CronJob) {
			cj.Spec.SuccessfulJobsHistoryLimit, cj.Spec.FailedJobsHistoryLimit = ptr.To[int32](1), ptr.To[int32](0)
		}), []*batchv1.Job{job("new", batchv1.JobComplete, "2026-05-01 11:00:00"), job("old", batchv1.JobComplete, "2026-05-01 10:00:00"), job("bad", batchv1.JobFailed, "2026-05-01 11:30:00")}, noon, "delete bad old"},
		{"the clock was at 1970: one Job", newCron("* * * * *", last("1970-01-01 00:05:00")), nil, noon, "start 12:00:00 TooManyMissedTimes"},
		{"no such zone", newCron("0 * * * *", func(cj *batchv1.CronJob) { cj.Spec.TimeZone = ptr.To("Atlantis/Main") }), nil, noon, "UnknownTimeZone"},
		{"no schedule", newCron("x"), nil, noon, "UnparseableSchedule"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			now := at(tc.now)
			since, _ := Since(tc.cron, now)
			plan := Reconcile(World{CronJob: tc.cron, Jobs: tc.jobs, Since: since, Now: now})
			var got []string
			if plan.Start != nil {
				got = append(got, "start "+plan.Start.UTC().Format("15:04:05"))
			}
			for _, j := range plan.Replace {
				got = append(got, "replace "+j.Name)
			}
			for i, j := range plan.Delete {
				if i == 0 {
					got = append(got, "delete")
				}
				got = append(got, j.Name)
			}
			for _, ref := range plan.Status.Active {
				got = append(got, "active "+ref.Name)
			}
			for _, e := range plan.Events {
				got = append(got, e.Reason)
			}
			s := strings.ReplaceAll(strings.Join(got, " "), "delete old bad", "delete bad old")
			if s != tc.want {
				t.Errorf("got %q, want %q", s, tc.want)
			}
		})
	}
}

// TestWaits: until the next time, no longer than a set clock may go unseen.
func TestWaits(t *testing.T) {
	for _, tc := range []struct {
		schedule, now string
		want          time.Duration
	}{
		{"0 * * * *", "2026-05-01 11:58:00", 2*time.Minute + lag},
		{"0 * * * *", "2026-05-01 11:10:00", MaxWait},
		{"*/5 * * * *", "2026-05-01 12:00:30", 4*time.Minute + 30*time.Second + lag},
	} {
		cj := newCron(tc.schedule)
		now := at(tc.now)
		cj.Status.LastScheduleTime = ptr.To(metav1.NewTime(now.Truncate(5 * time.Minute)))
		since, _ := Since(cj, now)
		if got := Reconcile(World{CronJob: cj, Since: since, Now: now}).Again; got != tc.want {
			t.Errorf("%s at %s: %v, want %v", tc.schedule, tc.now, got, tc.want)
		}
	}
}

// TestClockSetBack: a little is waited for, much is not believed.
func TestClockSetBack(t *testing.T) {
	cj := newCron("* * * * *")
	cj.Status.LastScheduleTime = ptr.To(metav1.NewTime(at("2026-05-01 12:00:00")))
	if _, ok := Since(cj, at("2026-05-01 11:55:00")); !ok {
		t.Error("five minutes back")
	}
	if _, ok := Since(cj, at("2025-05-01 11:55:00")); ok {
		t.Error("a year back")
	}
}
