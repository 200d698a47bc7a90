package apiserver

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/proxy"

	"edged/apiserver/registry"
)

// kubeletPort is where a Node's own API is, if the name does not say.
const kubeletPort = "10250"

// proxyPath is the path behind /proxy, and whether the request ended there.
func (c *call) proxyPath() string {
	const before = 3 // resource, name, "proxy"
	if len(c.info.Parts) <= before {
		if strings.HasSuffix(c.info.Path, "/") {
			return "/"
		}
		return ""
	}
	p := "/" + strings.Join(c.info.Parts[before:], "/")
	if strings.HasSuffix(c.info.Path, "/") {
		p += "/"
	}
	return p
}

// splitName reads "name", "name:port" and "scheme:name:port".
func (c *call) splitName() (scheme, name, port string, err error) {
	scheme, name, port, ok := utilnet.SplitSchemeNamePort(c.info.Name)
	if !ok {
		return "", "", "", apierrors.NewBadRequest(fmt.Sprintf("invalid %s request %q", strings.TrimSuffix(c.gr.Resource, "s"), c.info.Name))
	}
	return scheme, name, port, nil
}

func (c *call) proxyPod() error {
	scheme, name, port, err := c.splitName()
	if err != nil {
		return err
	}
	obj, err := c.reg.Get(c.req.Context(), c.gr, c.info.Namespace, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	pod := obj.(*corev1.Pod)
	if port == "" {
		port = firstPort(pod)
	}
	ip, err := proxyable(pod.Status.PodIP)
	if err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	return c.proxyTo(scheme, ip, port)
}

func firstPort(pod *corev1.Pod) string {
	for i := range pod.Spec.Containers {
		if ports := pod.Spec.Containers[i].Ports; len(ports) > 0 {
			return strconv.Itoa(int(ports[0].ContainerPort))
		}
	}
	return ""
}

// proxyable refuses addresses that would turn the API server against its own
// device, as upstream's proxyutil.IsProxyableIP.
func proxyable(address string) (string, error) {
	ip := net.ParseIP(address)
	if ip == nil {
		return "", errors.New("address not allowed")
	}
	if ip.IsLoopback() || ip.IsLinkLocalUnicast() || ip.IsLinkLocalMulticast() || ip.IsInterfaceLocalMulticast() || ip.IsUnspecified() {
		return "", errors.New("address not allowed")
	}
	return address, nil
}

func (c *call) proxyService() error {
	scheme, name, port, err := c.splitName()
	if err != nil {
		return err
	}
	obj, err := c.reg.Get(c.req.Context(), c.gr, c.info.Namespace, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) { // upstream looks for endpoints alone
		return apierrors.NewServiceUnavailable(fmt.Sprintf("no endpoints available for service %q", name))
	}
	if err != nil {
		return err
	}
	svc := obj.(*corev1.Service)
	if port == "" && len(svc.Spec.Ports) == 1 {
		port = strconv.Itoa(int(svc.Spec.Ports[0].Port))
	}
	i := slices.IndexFunc(svc.Spec.Ports, func(p corev1.ServicePort) bool {
		return p.Name == port || strconv.Itoa(int(p.Port)) == port
	})
	if i < 0 {
		return apierrors.NewServiceUnavailable(fmt.Sprintf("no service port %q found for service %q", port, name))
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return apierrors.NewServiceUnavailable(fmt.Sprintf("unsupported service type %q", svc.Spec.Type))
	}
	ip, target, ok := c.endpoint(svc, svc.Spec.Ports[i].Name)
	if !ok {
		return apierrors.NewServiceUnavailable(fmt.Sprintf("no endpoints available for service %q", name))
	}
	return c.proxyTo(scheme, ip, strconv.Itoa(int(target)))
}

// endpoint picks any ready endpoint of a Service's port.
func (s *Server) endpoint(svc *corev1.Service, portName string) (ip string, port int32, ok bool) {
	type target struct {
		ip   string
		port int32
	}
	var ready []target
	for _, slice := range registry.For[*discoveryv1.EndpointSlice](s.reg).List(svc.Namespace) {
		if slice.Labels[discoveryv1.LabelServiceName] != svc.Name || slice.AddressType == discoveryv1.AddressTypeFQDN {
			continue
		}
		for _, p := range slice.Ports {
			if p.Port == nil || p.Name != nil && *p.Name != portName || p.Name == nil && portName != "" {
				continue
			}
			for _, e := range slice.Endpoints {
				if (e.Conditions.Ready == nil || *e.Conditions.Ready) && len(e.Addresses) > 0 {
					ready = append(ready, target{e.Addresses[0], *p.Port})
				}
			}
		}
	}
	if len(ready) == 0 {
		return "", 0, false
	}
	t := ready[rand.IntN(len(ready))]
	if _, err := proxyable(t.ip); err != nil {
		return "", 0, false
	}
	return t.ip, t.port, true
}

func (c *call) proxyNode() error {
	scheme, name, port, err := c.splitName()
	if err != nil {
		return err
	}
	obj, err := c.reg.Get(c.req.Context(), c.gr, "", name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if port == "" || port == kubeletPort {
		path := c.proxyPath()
		if path == "" {
			path = "/"
		}
		return c.toNode(c.w, name, path, c.req.URL.Query())
	}
	for _, a := range obj.(*corev1.Node).Status.Addresses {
		if a.Type != corev1.NodeInternalIP {
			continue
		}
		ip, err := proxyable(a.Address)
		if err != nil {
			return apierrors.NewBadRequest(err.Error())
		}
		return c.proxyTo(scheme, ip, port)
	}
	return apierrors.NewServiceUnavailable(fmt.Sprintf("node %s has no internal address", name))
}

// proxyTo passes the request on, with what comes behind /proxy as its path,
// upgrades included.
func (c *call) proxyTo(scheme, ip, port string) error {
	path := c.proxyPath()
	upgrade := c.req.Header.Get("Upgrade") != ""
	if path == "" && !upgrade && (c.req.Method == http.MethodGet || c.req.Method == http.MethodHead) {
		// Relative links of the target need a folder to be relative to.
		to := url.URL{Path: c.req.URL.Path + "/", RawQuery: c.req.URL.RawQuery}
		c.w.Header().Set("Location", to.String())
		c.w.WriteHeader(http.StatusMovedPermanently)
		return nil
	}
	host := ip
	if port != "" {
		host = net.JoinHostPort(ip, port)
	} else if strings.Contains(ip, ":") {
		host = "[" + ip + "]"
	}
	target := &url.URL{Scheme: or(scheme, "http"), Host: host, Path: path, RawQuery: c.req.URL.RawQuery}
	prefix := strings.TrimSuffix(c.req.URL.Path, path)
	rp := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL, r.Out.Host = target, c.req.Host // the target sees the name that the client used, as upstream's
			r.SetXForwarded()
		},
		// It rewrites the links in HTML and the redirects that lead to the target
		// itself, so that they stay within the proxy.
		Transport:     &proxy.Transport{PathPrepend: prefix, RoundTripper: c.Server.proxy},
		FlushInterval: -1, // at once: streams pass through here
		ErrorHandler: func(w http.ResponseWriter, req *http.Request, err error) {
			if _, ok := err.(apierrors.APIStatus); !ok {
				err = apierrors.NewServiceUnavailable(fmt.Sprintf("error trying to reach service: %v", err))
			}
			c.respondError(w, req, err)
		},
	}
	rp.ServeHTTP(c.w, c.req)
	return nil
}
