package identity

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"sigs.k8s.io/yaml"
)

// kubeconfig is the part of client-go's clientcmd/api/v1.Config that edged
// writes. The type is repeated here because clientcmd links the whole of
// client-go's REST machinery for it.
type kubeconfig struct {
	APIVersion     string         `json:"apiVersion"`
	Kind           string         `json:"kind"`
	CurrentContext string         `json:"current-context"`
	Clusters       []namedCluster `json:"clusters"`
	Contexts       []namedContext `json:"contexts"`
	Users          []namedUser    `json:"users"`
}

type namedCluster struct {
	Name    string `json:"name"`
	Cluster struct {
		Server string `json:"server"`
		CAData []byte `json:"certificate-authority-data"`
	} `json:"cluster"`
}

type namedContext struct {
	Name    string `json:"name"`
	Context struct {
		Cluster string `json:"cluster"`
		User    string `json:"user"`
	} `json:"context"`
}

type namedUser struct {
	Name string `json:"name"`
	User struct {
		CertData []byte `json:"client-certificate-data"`
		KeyData  []byte `json:"client-key-data"`
	} `json:"user"`
}

func encodeKubeconfig(server string, caPEM []byte, cert *x509.Certificate, key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode a client key: %w", err)
	}
	c := kubeconfig{
		APIVersion: "v1", Kind: "Config", CurrentContext: "edged",
		Clusters: make([]namedCluster, 1), Contexts: make([]namedContext, 1), Users: make([]namedUser, 1),
	}
	c.Clusters[0].Name = "edged"
	c.Clusters[0].Cluster.Server = server
	c.Clusters[0].Cluster.CAData = caPEM
	c.Contexts[0].Name = "edged"
	c.Contexts[0].Context.Cluster = "edged"
	c.Contexts[0].Context.User = cert.Subject.CommonName
	c.Users[0].Name = cert.Subject.CommonName
	c.Users[0].User.CertData = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
	c.Users[0].User.KeyData = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	return yaml.Marshal(c)
}

// decodeKubeconfig reads what encodeKubeconfig wrote.
func decodeKubeconfig(data []byte) (server string, caPEM []byte, cert *x509.Certificate, err error) {
	var c kubeconfig
	if err := yaml.Unmarshal(data, &c); err != nil {
		return "", nil, nil, err
	}
	if len(c.Clusters) != 1 || len(c.Users) != 1 {
		return "", nil, nil, errors.New("not a kubeconfig of one cluster and one user")
	}
	block, _ := pem.Decode(c.Users[0].User.CertData)
	if block == nil {
		return "", nil, nil, errors.New("no client certificate")
	}
	cert, err = x509.ParseCertificate(block.Bytes)
	return c.Clusters[0].Cluster.Server, c.Clusters[0].Cluster.CAData, cert, err
}
