//go:build tools

package k8s

import _ "k8s.io/apiserver/pkg/storage/etcd3"
import _ "k8s.io/apiserver/pkg/storage/etcd3/testserver"
