// Package foreign lets controllers see and change what the servers of aggregated
// APIs hold: objects that are in no store of ours, whose namespaces, owners and
// quotas are.
//
// It is not the way of users' requests to such servers (apiserver's aggregator),
// and it keeps nothing: what is told here was asked for a moment ago. Only the
// metadata of objects is read.
//
// Types: Servers is the way there; Client asks by it in a controller's name;
// Resource is what a server has. Monitor follows all objects that can be followed.
//
// Promises: without APIServices of others nothing is asked and nothing is held.
// What cannot be discovered is told as client-go tells it, so that conditions read
// as upstream's.
//
// Dangers: a server that does not answer costs 5 s; a Client must not be asked
// where a cluster's own objects wait.
//
// Goroutines: Monitor's, one for each resource that is followed; they end with its
// context. May be imported by: controller/....
//
// Sources: k8s.io/client-go/discovery and metadata, which upstream's controllers
// ask by; k8s.io/kubernetes/pkg/controller/garbagecollector.
package foreign
