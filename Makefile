# edged: `make help` lists the targets.
SHELL := /bin/bash
export CGO_ENABLED := 0
export GOFLAGS := -trimpath
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -buildid= -X main.version=$(VERSION)
K8S_VERSION := $(shell sed -n 's/^\tk8s.io\/kubernetes //p' go.mod)
DEMO := $(CURDIR)/.demo
# Mounts of its own: the one at which `ip netns` keeps names would stay.
PRIVATE := unshare --mount

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

.PHONY: build
build: payload ## bin/edged for this machine
	go build -tags grpcnotrace -ldflags '$(LDFLAGS)' -o bin/edged ./cmd/edged

.PHONY: payload
payload: deps ## the shim and runc that the binary carries
	bash runtime/engine/payload/build.sh

.PHONY: deps
deps: ## Debian packages that building and testing need
	bash .ci/deps.sh

.PHONY: kubectl
kubectl: bin/kubectl ## bin/kubectl of the Kubernetes release whose API edged serves
bin/kubectl: go.mod
	bash .ci/kubectl.sh bin/kubectl $(K8S_VERSION)

.PHONY: demo demo-stop
demo: build $(if $(shell command -v kubectl),,kubectl) ## build, start a device under .demo, run a workload, show it
	bash examples/demo.sh start $(DEMO)
demo-stop: ## stop the demo's device and leave nothing behind
	bash examples/demo.sh stop $(DEMO)

.PHONY: lint
lint: ## gofmt, go vet, staticcheck; with BUILDROOT=path what that Buildroot says of buildroot/external
	@bad=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$bad" ] || { echo "gofmt: $$bad"; exit 1; }
	go vet ./...
	bash .ci/staticcheck.sh ./...
	$(if $(BUILDROOT),go run ./buildroot/lint -buildroot '$(BUILDROOT)')

.PHONY: unit
unit: payload ## unit tests with the race detector
	cd test/cnitool && go mod download # its test has no network
	CGO_ENABLED=1 go test -race -timeout 15m $$(go list ./... | grep -v '^edged/test/e2e')

.PHONY: test-soak
test-soak: ## 1000 simulated clusters, and every decoder of what a disk or a stranger gave fuzzed for a minute
	go test -count=1 -timeout 60m ./raftstore/sim -run TestSeeds -v -seeds 1000
	git grep '^func Fuzz' -- '*_test.go' | sed -E 's|^(.*)/[^/]*:func (Fuzz[A-Za-z]*).*|\2 ./\1|' | while read -r f dir; do \
		echo "$$f $$dir"; go test -run '^$$' -fuzz "^$$f$$" -fuzztime 60s -fuzzminimizetime 10x "$$dir" </dev/null || exit 1; done

.PHONY: containerd
containerd: .cache/containerd/usr/bin/containerd ## Debian's containerd, for the test that has one beside the daemon
.cache/containerd/usr/bin/containerd:
	bash .ci/apt-fetch.sh "$$(dpkg --print-architecture)" .cache/containerd containerd

.PHONY: e2e
e2e: build kubectl containerd ## end-to-end tests on devices in namespaces
	go test -count=1 -timeout 30m ./test/e2e/...

.PHONY: test
test: lint unit e2e test-robust-short ## README's test command: lint, unit, end-to-end and a short robustness test

.PHONY: bench
bench: build kubectl ## measure the budgets of ARCHITECTURE.md and print the table
	go run ./bench

.PHONY: bench-store
bench-store: build ## measure edged store beside etcd on one disk; needs root
	cd bench/store && go run . -edged ../../bin/edged

.PHONY: conformance
conformance: build ## Kubernetes' own e2e suite: make conformance [STAGE=1-pods] [FOCUS=regexp]
	bash test/conformance/build.sh test/conformance/work
	go run ./test/conformance -work test/conformance/work -stage '$(STAGE)' -focus '$(FOCUS)'

.PHONY: test-etcd
test-etcd: build ## etcd's own tests on edged store: make test-etcd [SUITE=common|e2e|k8s] [FOCUS=regexp] [ALL=1]
	bash test/etcd/build.sh test/etcd/work bin/edged
	cd test/etcd && $(PRIVATE) go run . -work work -suite '$(SUITE)' -focus '$(FOCUS)' $(if $(ALL),-all)

.PHONY: test-robust
test-robust: build ## members of edged store broken under load, judged by etcd's checkers: make test-robust [FAULT=regexp] [TRAFFIC=regexp] [ROUNDS=n]
	cd test/robust && go build -o work/robust . && $(PRIVATE) work/robust -bin ../../bin/edged -fault '$(FAULT)' -traffic '$(TRAFFIC)' -rounds $(or $(ROUNDS),1)
	cd test/robust && $(PRIVATE) work/robust -bin ../../bin/edged -prove -traffic '^etcd'

.PHONY: test-robust-short
test-robust-short: build ## two runs of test-robust: a leader killed, a leader cut off
	cd test/robust && go test . && go build -o work/robust . && $(PRIVATE) work/robust -bin ../../bin/edged -fault '^(kill|partition)$$' -traffic '^etcd$$'

.PHONY: test-kube-apiserver
test-kube-apiserver: build kubectl ## Kubernetes' own kube-apiserver and etcd's tools on our store; the first build takes ten minutes
	cd test/conformance/e2e && go build -ldflags "-s -w $(foreach p,k8s.io/component-base/version k8s.io/client-go/pkg/version,-X $(p).gitVersion=$(K8S_VERSION) -X $(p).gitMajor=1 -X $(p).gitMinor=$(word 2,$(subst ., ,$(K8S_VERSION))))" -o ../work/bin/kube-apiserver k8s.io/kubernetes/cmd/kube-apiserver
	cd test/etcd && go build -o ../conformance/work/bin/ go.etcd.io/etcd/etcdctl/v3 go.etcd.io/etcd/etcdutl/v3
	go run ./test/kubeapiserver

.PHONY: cross cross-check source
cross: deps ## dist/: static binaries for every architecture, packages, SBOMs, checksums
	bash .ci/cross.sh
cross-check: deps ## build dist/ twice, the second time with nothing cached, and compare
	bash .ci/cross-check.sh
source: ## dist/edged-VERSION-vendor.tar.gz, which builds without a network; after make cross
	bash .ci/source.sh

.PHONY: image
image: deps ## dist/edged-<board>.img and .upgrade: make image BOARD=rpi|amd64 [CONFIG=edged.yaml]
	bash .ci/image.sh $(BOARD)

.PHONY: check-image
check-image: deps ## build both images twice, compare them and have other programs check them
	CUTS= FLEET= BOOT= bash .ci/test-image.sh
.PHONY: test-image
test-image: deps kubectl ## check-image, and both images booted under qemu-system
	CUTS= FLEET= bash .ci/test-image.sh
.PHONY: test-cuts
test-cuts: deps kubectl ## the power of emulated Raspberry Pis cut under load: make test-cuts [CUTS=200]
	FLEET= CUTS=$(or $(CUTS),200) bash .ci/test-image.sh
.PHONY: test-helm
test-helm: build kubectl ## helm and an operator on controller-runtime against devices; the first build takes four minutes of CPU
	cd test/users && go build -ldflags '-s -w' -o ../../bin/helm helm.sh/helm/v4/cmd/helm && go build -ldflags '-s -w' -o ../../bin/operator ./operator
	EDGED_USERS=1 go test -count=1 -v -run 'TestHelm$$|TestOperator$$' ./test/e2e
.PHONY: test-ten
test-ten: build kubectl ## ten devices, one cluster: 90 s, 1 GB of memory
	EDGED_TEN=1 go test -count=1 -v -run 'TestTenDevices$$' ./test/e2e

.PHONY: test-cluster
test-cluster: build kubectl ## devices on subnets of their own, beside firewalls, removed and back: 5 minutes
	EDGED_CLUSTER=1 go test -count=1 -v -run 'TestSubnets$$|TestBesideOthers$$|TestComeBack$$' ./test/e2e

.PHONY: test-chaos
test-chaos: build kubectl ## five devices and whatever may befall them, in random order: make test-chaos [MINUTES=15] [SEED=n]
	EDGED_CHAOS=$(or $(MINUTES),15) EDGED_SEED=$(SEED) go test -count=1 -v -timeout 24h -run 'TestChaos$$' ./test/e2e

.PHONY: test-fleet
test-fleet: deps kubectl ## three emulated machines with the same card become a cluster: make test-fleet [FLEET=lose|upgrade]
	CUTS= FLEET=$(or $(FLEET),1) bash .ci/test-image.sh

.PHONY: unit-arm
unit-arm: ## unit tests of what can run under qemu-user, for arm64 and arm
	bash .ci/unit-arm.sh

.PHONY: clean
clean: ## remove what was built
	rm -rf bin dist .cache runtime/engine/payload/*.zst test/conformance/work test/etcd/work test/robust/work
