// Package metricsapi serves metrics.k8s.io: what Nodes and Pods use, for `kubectl top`
// and for HorizontalPodAutoscalers.
//
// It takes the place of a metrics-server, which asks every device every 15 seconds
// whether or not somebody wants to know, and keeps what it was told. Here the devices
// whose Pods a question is about are asked when it is, and nothing is kept: who does not
// ask pays nothing. A metrics-server that a user installs is preferred (package
// apiserver).
//
// Types: New returns the http.Handler of the group's paths.
//
// Promises: of a device that is not ready, or does not answer in Timeout, and of Pods
// that do not run there is nothing in a list.
//
// Goroutines: one for each device that a request asks, at most 16 at a time; they end
// with the request. May be imported by: apiserver.
//
// Sources: sigs.k8s.io/metrics-server/pkg/api, for what is answered and its words.
package metricsapi
