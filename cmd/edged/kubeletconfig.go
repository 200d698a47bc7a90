package main

import (
	"encoding/json"
	"fmt"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/runtime/evict"
	"edged/runtime/nodeapi"
	"edged/runtime/nodestatus"
	"edged/runtime/pod"
)

// kubeletConfig is what the node agent runs by, as a KubeletConfiguration: what it has
// no like of is left out. It is not upstream's type, whose fields cannot be left out,
// and which brings its logging with it.
func (d *device) kubeletConfig(port int32, memoryThresholdBytes int64) (json.RawMessage, error) {
	duration := func(s metav1.Duration) string { return s.Duration.String() }
	percent := func(share float64) int { return int(share*100 + 0.5) }
	var dns []string
	for _, a := range d.cfg.parsed.clusterDNS {
		dns = append(dns, a.String())
	}
	limits := d.cfg.logLimits()
	enabled := func(v bool) map[string]bool { return map[string]bool{"enabled": v} }
	return json.Marshal(map[string]any{
		"kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1",
		"enableServer": true, "port": port, "podLogsDir": logRoot,
		"authentication":          map[string]any{"x509": map[string]string{}, "webhook": enabled(true), "anonymous": enabled(false)},
		"authorization":           map[string]any{"mode": "Webhook", "webhook": map[string]string{}},
		"enableDebuggingHandlers": true, "enableSystemLogHandler": true, "enableSystemLogQuery": true,
		"clusterDomain": d.cfg.clusterDomain, "clusterDNS": dns, "resolvConf": hostResolvConf,
		"streamingConnectionIdleTimeout": duration(metav1.Duration{Duration: nodeapi.IdleTimeout}),
		"imageMinimumGCAge":              duration(metav1.Duration{Duration: evict.MinAge}),
		"imageGCHighThresholdPercent":    percent(evict.HighUsed), "imageGCLowThresholdPercent": percent(evict.LowUsed),
		"evictionHard": map[string]string{
			"memory.available": fmt.Sprint(memoryThresholdBytes),
			"nodefs.available": fmt.Sprintf("%d%%", percent(evict.LeastFree)), "nodefs.inodesFree": fmt.Sprintf("%d%%", percent(evict.LeastInodes)),
		},
		"cgroupRoot": pod.CgroupRoot, "cgroupsPerQOS": false, "cgroupDriver": "cgroupfs",
		"cpuCFSQuota": true, "cpuManagerPolicy": "none", "memoryManagerPolicy": "None", "topologyManagerPolicy": "none",
		"maxPods": nodestatus.MaxPods, "nodeStatusMaxImages": nodestatus.MaxImages, "podPidsLimit": -1,
		"containerLogMaxSize": resource.NewQuantity(limits.FileBytes, resource.BinarySI).String(), "containerLogMaxFiles": limits.Files,
		"configMapAndSecretChangeDetectionStrategy": "Watch", "localStorageCapacityIsolation": true,
		"registerNode": true, "registerWithTaints": taints(d.cfg),
		"failSwapOn": false, "failCgroupV1": false, "seccompDefault": false, "makeIPTablesUtilChains": false,
		"enableControllerAttachDetach": false, "protectKernelDefaults": false,
		"containerRuntimeEndpoint": "", // in this process
	})
}
