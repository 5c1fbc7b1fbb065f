//! All that is watched, put together for discovery.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Service};
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams};
use kube::runtime::watcher::Config;
use kube::{Api, Client};
use podspan_kubernetes::crd::ServiceReference;
use podspan_kubernetes::discovery::Objects;
use podspan_kubernetes::names::{self, CLUSTER_SET};
use podspan_wire::NodeName;
use serde_json::Value;
use tokio::sync::watch;

use super::client::is_absent;
use super::watches::{Seen, Shared, Watch, poll};

/// How often to look for types that are podspan's own, and for those of networks.
const OWN_ABSENT: Duration = Duration::from_secs(10);
const FOREIGN_ABSENT: Duration = Duration::from_secs(120);
/// How often to look at what hardly ever changes.
const SELDOM: Duration = Duration::from_secs(300);

/// Where flannel's ConfigMap may be.
const FLANNEL_NAMESPACES: [&str; 2] = ["kube-flannel", "kube-system"];
const FLANNEL_CONFIG: &str = "kube-flannel-cfg";
const KINDNET: &str = "kindnet";
/// How kubeadm and others label the pods of kube-apiserver.
const API_SERVER_LABEL: &str = "component=kube-apiserver";

type From<K> = watch::Receiver<Seen<K>>;

/// Everything that is watched.
pub struct Watched {
    client: Client,
    shared: Arc<Shared>,
    node_name: NodeName,
    node: From<Node>,
    cluster_set: From<DynamicObject>,
    service_cidrs: From<ServiceCIDR>,
    calico_pools: From<DynamicObject>,
    calico_blocks: From<DynamicObject>,
    cilium_node: From<DynamicObject>,
    api_servers: From<Pod>,
    flannel: From<ConfigMap>,
    kindnet: From<DaemonSet>,
    service: Option<(ServiceReference, From<Service>)>,
}

/// One object by its name.
fn named(name: &str) -> Config {
    Config::default().fields(&format!("metadata.name={name}"))
}

fn foreign(client: &Client, group: &str, version: &str, kind: &str, plural: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk(group, version, kind);
    Api::all_with(client.clone(), &ApiResource::from_gvk_with_plural(&kind, plural))
}

/// The ClusterSets, as plain JSON.
pub fn cluster_sets(client: &Client) -> Api<DynamicObject> {
    foreign(client, names::GROUP, names::VERSION, "ClusterSet", "clustersets")
}

/// The PeerClusters, as plain JSON.
pub fn peer_clusters(client: &Client) -> Api<DynamicObject> {
    foreign(client, names::GROUP, names::VERSION, "PeerCluster", "peerclusters")
}

async fn get<K>(api: &Api<K>, name: &str) -> Result<Option<K>, kube::Error>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    match api.get(name).await {
        Ok(object) => Ok(Some(object)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Watched {
    /// Starts watching on behalf of the node. Within a Tokio runtime.
    pub fn start(client: Client, node: NodeName, shared: Arc<Shared>) -> Self {
        let calico = |kind, plural, what| Watch {
            api: foreign(&client, "crd.projectcalico.org", "v1", kind, plural),
            config: Config::default(),
            what,
            absent_pause: FOREIGN_ABSENT,
        };
        let (pods, maps, daemons) = (client.clone(), client.clone(), client.clone());
        Self {
            node: Watch {
                api: Api::all(client.clone()),
                config: named(node.as_str()),
                what: "the Node",
                absent_pause: OWN_ABSENT,
            }
            .spawn(shared.clone()),
            cluster_set: Watch {
                api: cluster_sets(&client),
                config: named(CLUSTER_SET),
                what: "the ClusterSet",
                absent_pause: OWN_ABSENT,
            }
            .spawn(shared.clone()),
            service_cidrs: Watch {
                api: Api::all(client.clone()),
                config: Config::default(),
                what: "ServiceCIDRs",
                absent_pause: FOREIGN_ABSENT,
            }
            .spawn(shared.clone()),
            calico_pools: calico("IPPool", "ippools", "Calico's IPPools").spawn(shared.clone()),
            calico_blocks: calico("BlockAffinity", "blockaffinities", "Calico's BlockAffinities")
                .spawn(shared.clone()),
            cilium_node: Watch {
                api: foreign(&client, "cilium.io", "v2", "CiliumNode", "ciliumnodes"),
                config: named(node.as_str()),
                what: "the CiliumNode",
                absent_pause: FOREIGN_ABSENT,
            }
            .spawn(shared.clone()),
            api_servers: poll(SELDOM, "the pods of kube-apiserver", shared.clone(), move || {
                let api: Api<Pod> = Api::namespaced(pods.clone(), "kube-system");
                async move {
                    let params = ListParams::default().labels(API_SERVER_LABEL);
                    Ok(api.list(&params).await?.items)
                }
            }),
            flannel: poll(SELDOM, "flannel's ConfigMap", shared.clone(), move || {
                let client = maps.clone();
                async move {
                    for namespace in FLANNEL_NAMESPACES {
                        let api = Api::namespaced(client.clone(), namespace);
                        if let Some(config) = get(&api, FLANNEL_CONFIG).await? {
                            return Ok(vec![config]);
                        }
                    }
                    Ok(Vec::new())
                }
            }),
            kindnet: poll(SELDOM, "kindnet's DaemonSet", shared.clone(), move || {
                let api = Api::namespaced(daemons.clone(), "kube-system");
                async move { Ok(get(&api, KINDNET).await?.into_iter().collect()) }
            }),
            service: None,
            client,
            shared,
            node_name: node,
        }
    }

    /// Watches the Service from which endpoints come, if there is to be one.
    pub fn set_service(&mut self, reference: Option<&ServiceReference>) {
        if self.service.as_ref().map(|(known, _)| known) == reference {
            return;
        }
        self.service = reference.map(|reference| {
            let watch = Watch {
                api: Api::namespaced(self.client.clone(), &reference.namespace),
                config: named(&reference.name),
                what: "the Service of the endpoints",
                absent_pause: OWN_ABSENT,
            };
            (reference.clone(), watch.spawn(self.shared.clone()))
        });
    }

    /// What is known, once everything that can be known was listed.
    pub fn objects(&self) -> Option<Objects> {
        let mut objects = Objects::default();
        let unreadable = &mut objects.unreadable;
        objects.node = take(&self.node, unreadable)?.pop();
        let json = |objects: Vec<DynamicObject>| -> Vec<Value> {
            objects.into_iter().filter_map(|object| serde_json::to_value(object).ok()).collect()
        };
        objects.cluster_set = json(take(&self.cluster_set, unreadable)?).pop();
        objects.service_cidrs = take(&self.service_cidrs, unreadable)?;
        objects.calico_pools = json(take(&self.calico_pools, unreadable)?);
        objects.calico_blocks = json(take(&self.calico_blocks, unreadable)?);
        objects.cilium_node = json(take(&self.cilium_node, unreadable)?).pop();
        objects.api_servers = take(&self.api_servers, unreadable)?;
        objects.flannel = take(&self.flannel, unreadable)?.pop();
        objects.kindnet = take(&self.kindnet, unreadable)?.pop();
        if let Some((_, service)) = &self.service {
            objects.endpoint_service = take(service, unreadable)?.pop();
        }
        Some(objects)
    }

    /// Why the facts are not known yet, for a person.
    pub fn waiting_for(&self) -> String {
        let node = self.node.borrow();
        match (&node.objects, &node.refused) {
            (_, Some(why)) => why.clone(),
            (Some(nodes), None) if nodes.is_empty() => format!(
                "the API server has no Node {}: has its kubelet joined, and is the name right (source.node or \
                 NODE_NAME)?",
                self.node_name
            ),
            (Some(_), None) => "the API server has not told everything yet".to_owned(),
            (None, None) => match self.shared.away() {
                Some(away) => away.told(),
                None => "the API server has not answered yet".to_owned(),
            },
        }
    }
}

fn take<K: Clone>(from: &From<K>, unreadable: &mut Vec<String>) -> Option<Vec<K>> {
    let seen = from.borrow();
    if !seen.settled() {
        return None;
    }
    unreadable.extend(seen.refused.clone());
    Some(seen.objects.clone().unwrap_or_default())
}
