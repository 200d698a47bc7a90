package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/authentication/user"

	"edged/apiserver/registry"
	"edged/apiserver/registry/recorder"
	"edged/internal/netns"
	"edged/net/bridge"
	"edged/net/cni"
	"edged/net/mesh"
	"edged/net/nft"
	"edged/net/policy"
	"edged/net/proxy"
	"edged/runtime/agent"
	"edged/runtime/engine"
	"edged/runtime/evict"
	"edged/runtime/image"
	"edged/runtime/localpath"
	"edged/runtime/nodeapi"
	"edged/runtime/nodestats"
	"edged/runtime/nodestatus"
	"edged/runtime/pod"
	"edged/runtime/podlog"
	"edged/runtime/sandbox"
	"edged/runtime/volume"
)

const (
	// hostResolvConf is how this device itself resolves names.
	hostResolvConf = "/etc/resolv.conf"
	// registerAgain is how often a device without a Node tries to become one.
	registerAgain = time.Second
	// refreshBridge is how often the bridge looks whether another program changed
	// what it relies on.
	refreshBridge = 10 * time.Second
)

// paths are where the node's parts keep their state; reset removes them.
type paths struct{ dataDir, runDir string }

func (p paths) engine() engine.Config {
	return engine.Config{
		Root: filepath.Join(p.dataDir, "containerd"), State: filepath.Join(p.runDir, "containerd"), BinDir: filepath.Join(p.dataDir, "bin"),
		CgroupRoot: pod.CgroupRoot,
	}
}
func (p paths) sandboxes() string { return filepath.Join(p.runDir, "sandboxes") }
func (p paths) podData() string   { return filepath.Join(p.dataDir, "pods") }
func (p paths) volumes() string   { return filepath.Join(p.dataDir, "volumes") }
func (p paths) podRun() string    { return filepath.Join(p.runDir, "pods") }
func (p paths) bridge() string    { return filepath.Join(p.runDir, "bridge") }
func (p paths) cni() string       { return filepath.Join(p.runDir, "cni") }

// runNode turns the device into one that runs Pods. It returns when everything
// has been started; what was started ends with ctx.
func (d *device) runNode(ctx context.Context, g *errgroup.Group) error {
	c := d.cfg
	p := paths{c.dataDir, c.runDir}
	cfg := p.engine()
	cfg.Logger, cfg.Socket = d.log, c.containerd
	eng, err := engine.Open(ctx, cfg)
	if err != nil && c.containerd != "" {
		err = fmt.Errorf("--containerd: %w", err)
	}
	if err != nil {
		return endOf(ctx, err)
	}
	d.onClose(func() error { eng.Close(); return nil })
	d.engine = eng
	if c.cniConfDir != "" {
		if d.cni, err = cni.New(cni.Config{ConfDir: c.cniConfDir, BinDirs: c.cniBinDirs, StateDir: p.cni(), Logger: d.log}); err != nil {
			return err
		}
	}

	status := nodestatus.New(nodestatus.Config{
		NodeName: c.nodeName, IP: d.address, OtherIP: d.otherNodeIP, KubeletPort: int32(c.parsed.kubelet.Port()),
		Version: kubernetesVersion + "+edged", DataDir: c.dataDir, Labels: c.parsed.labels, Taints: taints(c),
		Registry: d.registry, Images: eng, Logger: d.log, Alone: func() bool { return d.store.Members() == 1 },
		Now: d.clock.Now, ClockOff: func() bool { _, wrong := d.clock.Status().Wrong(); return wrong },
		Ready: func(ctx context.Context) error {
			if !d.running.Load() {
				return nodestatus.ErrStarting
			}
			if d.cni == nil {
				return nil
			}
			if err := d.cni.Ready(ctx); err != nil {
				// The words of kubelet and containerd, which people look for.
				return fmt.Errorf("container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:Network plugin returns error: %w", err)
			}
			return nil
		},
	})
	node, err := d.register(ctx, status)
	if err != nil {
		return endOf(ctx, err)
	}
	var podCIDRs []netip.Prefix
	for _, s := range node.Spec.PodCIDRs {
		podCIDR, err := netip.ParsePrefix(s)
		if err != nil {
			return fmt.Errorf("the Node %s has podCIDR %q: %w", c.nodeName, s, err)
		}
		podCIDRs = append(podCIDRs, podCIDR)
	}
	nw, err := d.openNetwork(ctx, g, p, podCIDRs)
	if err != nil {
		return endOf(ctx, err)
	}
	if err := d.runAgent(ctx, g, p, nw, status); err != nil {
		return endOf(ctx, err)
	}
	if err := d.importImages(ctx); err != nil {
		d.log.Error("images were not imported", "folder", c.imageDir, "err", err)
	}
	d.running.Store(true)
	d.onClose(noError(d.clock.Subscribe(status.Changed)))
	g.Go(func() error { return status.Run(ctx) })
	g.Go(func() error { return d.followRollout(ctx, g) })
	return nil
}

func noError(f func()) func() error { return func() error { f(); return nil } }

// register makes the device's Node, however long it takes until there is a leader.
func (d *device) register(ctx context.Context, status *nodestatus.Reporter) (*corev1.Node, error) {
	t := time.NewTicker(registerAgain)
	defer t.Stop()
	for told := ""; ; {
		node, err := status.Register(ctx)
		if err == nil {
			return node, nil
		}
		if err.Error() != told && ctx.Err() == nil {
			told = err.Error()
			d.log.Warn("the device is not registered as a Node yet, trying again", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-t.C:
		}
	}
}

func taints(c *config) (out []corev1.Taint) {
	for _, t := range c.parsed.taints {
		out = append(out, corev1.Taint{Key: t.key, Value: t.value, Effect: corev1.TaintEffect(t.effect)})
	}
	return out
}

// openNetwork makes the bridge and starts the ways to other devices, the proxy
// and DNS.
func (d *device) openNetwork(ctx context.Context, g *errgroup.Group, p paths, podCIDRs []netip.Prefix) (podNetwork, error) {
	c, external := d.cfg, d.cni != nil
	table := nft.Open()
	d.onClose(table.Close)
	var tracker proxy.Conntrack
	if ct, err := bridge.OpenConntrack(); err != nil {
		d.log.Warn("UDP clients of a Service wait for the kernel's timeout when an endpoint goes", "err", err)
	} else {
		tracker = ct
		d.onClose(func() error { ct.Close(); return nil })
	}
	px, err := proxy.New(proxy.Config{
		Network: proxy.Network{
			NodeName: c.nodeName, Bridge: bridge.DefaultName, PodCIDRs: slices.Clone(podCIDRs),
			ClusterCIDRs: c.parsed.clusterCIDRs, ServiceCIDRs: c.parsed.serviceCIDRs, Reserved: c.parsed.clusterDNS, KeepSources: external,
		},
		Table: table, Conntrack: tracker, Logger: d.log,
	})
	if err != nil {
		return nil, err
	}
	d.onClose(px.Close)
	br, err := bridge.New(bridge.Config{
		PodCIDRs: slices.Clone(podCIDRs), ServiceCIDRs: c.parsed.serviceCIDRs, HostAddrs: c.parsed.clusterDNS,
		StateDir: p.bridge(), Logger: d.log, HostOnly: external, HostPorts: func(m []bridge.PortMapping) { px.SetHostPorts(hostPorts(m)) },
	})
	if err != nil {
		return nil, err
	}
	d.onClose(br.Close)
	g.Go(func() error { return d.announcer.Follow(ctx, c.nodeName, d.registry) })
	local := br.Attached
	if external {
		local = d.cni.Attached
	}
	rules := policy.New(policy.Config{NodeName: c.nodeName, Table: table, Local: local, Logger: d.log})
	g.Go(func() error { return rules.Run(ctx, d.registry) })
	g.Go(func() error { return px.Run(ctx, d.registry) })
	g.Go(func() error { return d.runDNS(ctx, px) })
	if external {
		return &pluginNetwork{cni: d.cni, rules: rules, publish: px.SetHostPorts, ports: map[string][]proxy.HostPort{}}, nil
	}
	ways, err := mesh.New(mesh.Config{
		Self: mesh.Peer{Name: c.nodeName, PodCIDRs: slices.Clone(podCIDRs)}, ClusterCIDRs: c.parsed.clusterCIDRs,
		SetMTU: br.SetMTU, Table: table, Logger: d.log,
	})
	if err != nil {
		return nil, err
	}
	d.onClose(ways.Close)
	g.Go(func() error { return ways.Run(ctx, d.registry) })
	g.Go(func() error {
		t := time.NewTicker(refreshBridge)
		defer t.Stop()
		var told string // of foreign packet filters, once
		for {
			told = d.admitPods(told)
			select {
			case <-ctx.Done():
				return nil
			case <-t.C:
				if err := br.Refresh(ctx); err != nil && ctx.Err() == nil {
					d.log.Warn("the bridge was not refreshed", "err", err)
				}
			}
		}
	})
	return network{br, rules}, nil
}

// admitPods lets packets of Pods through the packet filters of other programs
// and returns what it said about those that do not let it.
func (d *device) admitPods(told string) string {
	chains, err := nft.Admit(bridge.DefaultName, d.cfg.parsed.clusterCIDRs)
	text := fmt.Sprint(err)
	for _, c := range chains {
		name := c.Family + " " + c.Table + " " + c.Chain
		if c.Err == nil {
			d.log.Info("packets of Pods are let through another program's packet filter", "chain", name)
			continue
		}
		err = fmt.Errorf("%s: %w", name, c.Err)
		text += err.Error()
	}
	if err != nil && text != told {
		d.log.Warn("another program's packet filter may drop packets of Pods; have it trust the link "+bridge.DefaultName+" (firewalld: firewall-cmd --permanent --zone=trusted --add-interface="+bridge.DefaultName+")", "err", err)
	}
	return text
}

// runAgent starts the node agent and opens the kubelet API.
func (d *device) runAgent(ctx context.Context, g *errgroup.Group, p paths, nw podNetwork, status *nodestatus.Reporter) error {
	c := d.cfg
	boxes, err := sandbox.New(p.sandboxes())
	if err != nil {
		return err
	}
	share := d.openShare()
	objects := agent.NewObjects(d.registry, c.nodeName)
	volumes, err := volume.New(volume.Config{
		DataDir: p.podData(), RunDir: p.podRun(), Objects: objects, Tokens: tokens{d}, Certificates: certificates{d}, Images: d.engine, Now: d.clock.Now, Logger: d.log,
	})
	if err != nil {
		return err
	}
	if err := keepLogs(c); err != nil {
		return err
	}
	ag := agent.New(agent.Config{
		NodeName: c.nodeName, Registry: d.registry, Events: d.engine, Logger: d.log,
		Leftovers: []agent.Leftovers{keepers{boxes, volumes, nw}},
		Device: &pod.Device{
			Engine: d.engine, Volumes: volumes, Network: nw, Images: image.New(image.Config{
				Engine: d.engine, HostsDir: "/etc/containerd/certs.d", Registries: d.registriesPath, Source: share,
			}),
			Sandboxes: boxes, Objects: objects, Auth: objects.PullAuth,
			Event: func(p *corev1.Pod, container, eventType, reason, message string) {
				field := ""
				if container != "" {
					field = "spec.containers{" + container + "}"
				}
				d.events.Event(recorder.Reference("v1", "Pod", p, field), eventType, reason, message)
			},
			DNS:    pod.DNS{Server: c.parsed.clusterDNS[0].String(), Domain: c.clusterDomain, HostResolvConf: hostResolvConf},
			HostIP: func() string { return d.address().String() }, LogRoot: logRoot, LogLimits: c.logLimits(), SeccompDir: filepath.Join(c.dataDir, "seccomp"),
			MemoryBytes: memoryBytes(), Now: d.clock.Now, Logger: d.log,
		},
	})
	room, err := nodestatus.RoomOf(c.dataDir)
	if err != nil {
		return err
	}
	configuration, err := d.kubeletConfig(int32(c.parsed.kubelet.Port()), room.MemoryThreshold)
	if err != nil {
		return err
	}
	stats := d.statsSource(ag, volumes, boxes)
	d.node.set(nodeapi.New(nodeapi.Config{
		Pods: ag, Engine: d.engine, LogRoot: logRoot, NodeLogs: "/var/log", Logger: d.log, Dial: dialPod(boxes),
		Metrics: metricsHandler(nodeMetrics{c.nodeName, ag, d.engine}), Resources: resourceMetricsHandler(stats), Stats: stats, Configuration: configuration,
	}))
	g.Go(func() error { return ag.Run(ctx) })
	d.onClose(noError(d.clock.Subscribe(ag.Refresh))) // tokens may have ended with a jump
	local := localpath.New(localpath.Config{
		NodeName: c.nodeName, Dir: p.volumes(), Registry: d.registry, Events: d.events.Component("local-path"), Logger: d.log,
	})
	g.Go(func() error { return local.Run(ctx) })
	d.onMoved(func() { status.Changed(); ag.Refresh() })
	manager := evict.New(evict.Config{
		Engine: d.engine, Pods: ag, Now: time.Now, Logger: d.log,
		NodeName: c.nodeName, Copies: copies(share), Named: d.namedImages,
		Look: func() (evict.Resources, error) {
			r, err := nodestatus.RoomOf(c.dataDir)
			return evict.Resources(r), err
		},
		Owner:  ownerOf,
		Volume: volumes.EmptyDir,
		Log:    containerLog,
		Dirs: func(of *corev1.Pod) []string {
			return []string{filepath.Join(p.podData(), string(of.UID)), podlog.Dir(logRoot, of.Namespace, of.Name, string(of.UID))}
		},
	})
	g.Go(func() error { return manager.Run(ctx) })
	return nil
}

// ownerOf tells the UID of the Pod whose a container is, and which one of it.
func ownerOf(c engine.Container) (uid, container string) {
	uid, _, _ = pod.Owner(c)
	return uid, pod.ContainerOf(c)
}

// containerLog is the folder of a container's log.
func containerLog(p *corev1.Pod, container string) string {
	return filepath.Join(podlog.Dir(logRoot, p.Namespace, p.Name, string(p.UID)), container)
}

// statsSource measures the device and its Pods for who asks.
func (d *device) statsSource(ag *agent.Agent, volumes *volume.Manager, boxes *sandbox.Sandboxes) *nodestats.Source {
	return nodestats.New(nodestats.Config{
		NodeName: d.cfg.nodeName, Engine: d.engine, Pods: ag, Owner: ownerOf, Group: pod.Group, Log: containerLog, Volume: volumes.Use,
		NetDev: func(p *corev1.Pod) (data []byte, err error) {
			err = netns.Do(boxes.Path(string(p.UID)).Net, func() (err error) {
				data, err = os.ReadFile("/proc/thread-self/net/dev")
				return err
			})
			return data, err
		},
		DataDir: d.cfg.dataDir, Proc: "/proc", Now: time.Now,
	})
}

// memoryBytes is the machine's memory.
func memoryBytes() int64 {
	m, err := nodestatus.Memory()
	if err != nil {
		return 0
	}
	return m
}

// dialPod connects to a port of the Pod's localhost, over IPv4, else over IPv6, as
// containerd does.
func dialPod(boxes *sandbox.Sandboxes) func(context.Context, *corev1.Pod, int32) (net.Conn, error) {
	return func(ctx context.Context, p *corev1.Pod, port int32) (conn net.Conn, err error) {
		dial := func() (err error) {
			var d net.Dialer
			var err4 error
			if conn, err4 = d.DialContext(ctx, "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port)))); err4 == nil {
				return nil
			}
			if conn, err = d.DialContext(ctx, "tcp6", net.JoinHostPort("::1", strconv.Itoa(int(port)))); err != nil {
				return fmt.Errorf("IPv4: %w, IPv6: %w", err4, err)
			}
			return nil
		}
		if p.Spec.HostNetwork {
			err = dial()
			return conn, err
		}
		err = netns.Do(boxes.Path(string(p.UID)).Net, dial)
		return conn, err
	}
}

// tokens makes ServiceAccount tokens for Pods of this device.
type tokens struct{ d *device }

func (t tokens) RequestToken(ctx context.Context, ns, account string, req *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error) {
	if req.Spec.ExpirationSeconds == nil {
		hour := int64(3600)
		req.Spec.ExpirationSeconds = &hour
	}
	return t.d.access.tokens.TokenRequest(ctx, ns, account, req)
}

// certificates asks for certificates for Pods of this device, as its kubelet does: as
// the device's own user, whom admission lets ask for its Pods only.
type certificates struct{ d *device }

func (c certificates) RequestPodCertificate(ctx context.Context, req *certificatesv1.PodCertificateRequest) (*certificatesv1.PodCertificateRequest, error) {
	ctx = registry.WithUser(ctx, &user.DefaultInfo{
		Name: "system:node:" + c.d.cfg.nodeName, Groups: []string{user.NodesGroup, user.AllAuthenticated},
	})
	return registry.For[*certificatesv1.PodCertificateRequest](c.d.registry).Create(ctx, req)
}

// keepers remove what Pods left that are not on this device any more.
type keepers struct {
	boxes   *sandbox.Sandboxes
	volumes *volume.Manager
	network podNetwork
}

func (k keepers) Keep(ctx context.Context, uids []string) error {
	keep := map[string]bool{}
	for _, u := range uids {
		keep[u] = true
	}
	if err := k.network.Sync(ctx, uids); err != nil {
		return err
	}
	boxes, err := k.boxes.List()
	if err != nil {
		return err
	}
	for _, uid := range boxes {
		if !keep[uid] {
			if err := k.boxes.Remove(uid); err != nil {
				return err
			}
		}
	}
	pods, err := k.volumes.List()
	if err != nil {
		return err
	}
	for _, uid := range pods {
		if !keep[uid] {
			if err := k.volumes.Teardown(ctx, uid); err != nil {
				return err
			}
		}
	}
	return nil
}

func cpus() int { return goruntime.NumCPU() }
