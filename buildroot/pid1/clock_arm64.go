package pid1

// timexLong is C's long in struct timex.
type timexLong = int64
