//! The settings files of a node's programs, and the flags of the control plane's.

use serde_json::json;

use super::plan::{ClusterPlan, NodePlan};

/// The image of the process that holds a pod's namespaces.
pub(crate) const PAUSE_IMAGE: &str = "podspan.io/lab/pause:1";
/// The cluster's DNS.
pub(crate) const COREDNS_IMAGE: &str = "podspan.io/lab/coredns:1";
/// The lab's own binary, serving probes.
pub(crate) const PROBE_IMAGE: &str = "podspan.io/lab/probe:1";

/// Where containerd listens on a node.
pub(crate) const CONTAINERD: &str = "/run/containerd/containerd.sock";

/// containerd 1.6, as it must be where no out-of-memory score may be lowered.
pub(crate) fn containerd() -> String {
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]

[grpc]
address = "{CONTAINERD}"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE_IMAGE}"
restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/opt/cni/bin"
conf_dir = "/etc/cni/net.d"
"#
    )
}

/// kubelet's configuration, JSON; `cgroup` is the node's control group.
pub(crate) fn kubelet(cluster: &ClusterPlan, cgroup: &str) -> String {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": "/etc/kubernetes/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup,
        "clusterDNS": cluster.dns().both(),
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD}"),
        "enforceNodeAllocatable": [],
        // The machine's disk and memory are shared with all other nodes.
        "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%", "nodefs.inodesFree": "0%"},
        "failCgroupV1": false,
        "failSwapOn": false,
        "imageGCHighThresholdPercent": 100,
        "oomScoreAdj": 0,
        "podLogsDir": "/var/log/pods",
        "resolvConf": "/etc/kubernetes/resolv.conf",
        "rotateCertificates": false,
    })
    .to_string()
}

/// kubelet's command line.
pub(crate) fn kubelet_command(node: &NodePlan) -> Vec<String> {
    vec![
        format!("{BIN}/kubelet"),
        "--config=/etc/kubernetes/kubelet.json".to_owned(),
        "--kubeconfig=/etc/kubernetes/kubelet.kubeconfig".to_owned(),
        "--root-dir=/var/lib/kubelet".to_owned(),
        format!("--hostname-override={}", node.name),
        format!("--node-ip={},{}", node.address.v4, node.address.v6),
    ]
}

/// Where the programs of Kubernetes are on a node.
pub(crate) const BIN: &str = "/opt/kubernetes/bin";

/// kube-proxy's configuration, JSON.
pub(crate) fn kube_proxy(cluster: &ClusterPlan, node: &NodePlan) -> String {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": cluster.proxy.name(),
        "clientConnection": {"kubeconfig": "/etc/kubernetes/kube-proxy.kubeconfig"},
        "clusterCIDR": format!("{},{}", cluster.pods.v4, cluster.pods.v6),
        "hostnameOverride": node.name,
        "oomScoreAdj": 0,
        // The table's size is the machine's, not the namespace's.
        "conntrack": {"maxPerCore": 0},
    })
    .to_string()
}

/// kube-controller-manager's flags.
pub(crate) fn controller_manager(cluster: &ClusterPlan, pki: impl Fn(&str) -> String) -> Vec<String> {
    let kubeconfig = pki("controller-manager.kubeconfig");
    [
        ("kubeconfig", kubeconfig.clone()),
        ("authentication-kubeconfig", kubeconfig.clone()),
        ("authorization-kubeconfig", kubeconfig),
        ("root-ca-file", pki("ca.crt")),
        ("service-account-private-key-file", pki("sa.key")),
        ("use-service-account-credentials", "true".to_owned()),
        ("cluster-name", cluster.name.to_owned()),
        ("allocate-node-cidrs", "true".to_owned()),
        ("cluster-cidr", format!("{},{}", cluster.pods.v4, cluster.pods.v6)),
        ("node-cidr-mask-size-ipv4", "24".to_owned()),
        ("node-cidr-mask-size-ipv6", "64".to_owned()),
        ("service-cluster-ip-range", format!("{},{}", cluster.services.v4, cluster.services.v6)),
        ("cluster-signing-cert-file", pki("ca.crt")),
        ("cluster-signing-key-file", pki("ca.key")),
        ("cert-dir", pki("")),
        ("leader-elect", "false".to_owned()),
        ("bind-address", "127.0.0.1".to_owned()),
    ]
    .map(|(name, value)| format!("--{name}={value}"))
    .into()
}

/// kube-scheduler's flags.
pub(crate) fn scheduler(pki: impl Fn(&str) -> String) -> Vec<String> {
    let kubeconfig = pki("scheduler.kubeconfig");
    [
        ("kubeconfig", kubeconfig.clone()),
        ("authentication-kubeconfig", kubeconfig.clone()),
        ("authorization-kubeconfig", kubeconfig),
        ("cert-dir", pki("")),
        ("leader-elect", "false".to_owned()),
        ("bind-address", "127.0.0.1".to_owned()),
    ]
    .map(|(name, value)| format!("--{name}={value}"))
    .into()
}

/// CoreDNS as kubeadm deploys it, without anything outside of the cluster to forward to.
pub(crate) fn coredns(cluster: &ClusterPlan) -> String {
    let dns = cluster.dns();
    format!(
        r#"apiVersion: v1
kind: ServiceAccount
metadata: {{name: coredns, namespace: kube-system}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: "system:coredns"}}
rules:
- {{apiGroups: [""], resources: [endpoints, services, pods, namespaces], verbs: [list, watch]}}
- {{apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: "system:coredns"}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:coredns"}}
subjects: [{{kind: ServiceAccount, name: coredns, namespace: kube-system}}]
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: coredns, namespace: kube-system}}
data:
  Corefile: |
    .:53 {{
        errors
        health {{
           lameduck 5s
        }}
        ready
        kubernetes cluster.local in-addr.arpa ip6.arpa {{
           pods insecure
           fallthrough in-addr.arpa ip6.arpa
           ttl 5
        }}
        cache 5
        reload
    }}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: coredns, namespace: kube-system, labels: {{k8s-app: kube-dns}}}}
spec:
  replicas: 1
  selector: {{matchLabels: {{k8s-app: kube-dns}}}}
  template:
    metadata: {{labels: {{k8s-app: kube-dns}}}}
    spec:
      serviceAccountName: coredns
      priorityClassName: system-cluster-critical
      dnsPolicy: Default
      containers:
      - name: coredns
        image: {COREDNS_IMAGE}
        imagePullPolicy: Never
        args: ["-conf", "/etc/coredns/Corefile"]
        ports:
        - {{containerPort: 53, name: dns, protocol: UDP}}
        - {{containerPort: 53, name: dns-tcp, protocol: TCP}}
        readinessProbe: {{httpGet: {{path: /ready, port: 8181}}, periodSeconds: 2}}
        securityContext:
          allowPrivilegeEscalation: false
          readOnlyRootFilesystem: true
          capabilities: {{add: [NET_BIND_SERVICE], drop: [ALL]}}
        volumeMounts: [{{name: config, mountPath: /etc/coredns, readOnly: true}}]
      volumes:
      - {{name: config, configMap: {{name: coredns}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: kube-dns, namespace: kube-system, labels: {{k8s-app: kube-dns}}}}
spec:
  selector: {{k8s-app: kube-dns}}
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv4, IPv6]
  clusterIP: {v4}
  clusterIPs: ["{v4}", "{v6}"]
  ports:
  - {{name: dns, port: 53, protocol: UDP}}
  - {{name: dns-tcp, port: 53, protocol: TCP}}
"#,
        v4 = dns.v4,
        v6 = dns.v6,
    )
}
