// cnitool calls CNI plugins; net/cniplugin's test builds it.
module edged/test/cnitool

go 1.26

tool github.com/containernetworking/cni/cnitool

require github.com/containernetworking/cni v1.3.0 // indirect
