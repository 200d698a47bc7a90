package cniplugin

import "testing"

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.1.0","name":"n","podCIDRs":["10.44.0.0/24"],"cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}]}`))
	f.Add([]byte(`{"cniVersion":"0.4.0","name":"n","podCIDRs":["fd44::/64"],"prevResult":{"ips":[{"address":"10.0.0.1/32","interface":7}]}}`))
	f.Add([]byte(`{"podCIDRs":[""],"prevResult":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := parse(b); err == nil && (c.Name == "" || c.Bridge == "" || c.StateDir == "" || len(c.PodCIDRs) == 0) {
			t.Errorf("%s is taken as %+v", b, c)
		}
	})
}
