//! Certificates and kubeconfigs of a cluster, as kubeadm would make them, for the life of the lab.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;

use super::files;

/// A cluster's certificate authority and the directory with all that it has signed.
#[derive(Debug)]
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    directory: PathBuf,
}

/// A certificate and its secret key, PEM.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    /// Makes one and puts its certificate as `ca.crt`, its key as `ca.key` into `directory`.
    pub(crate) fn create(cluster: &str, directory: &Path) -> Result<Self> {
        let key = KeyPair::generate().context("cannot make a CA key")?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("{cluster} CA"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let certificate = params.self_signed(&key).context("cannot sign a CA certificate")?.pem();
        files::write(&directory.join("ca.crt"), &certificate)?;
        files::write_secret(&directory.join("ca.key"), &key.serialize_pem())?;
        Ok(Self { issuer: Issuer::new(params, key), certificate, directory: directory.to_owned() })
    }

    /// A certificate for a client of the API: user `name`, in `groups`.
    pub(crate) fn client(&self, name: &str, groups: &[&str]) -> Result<Pair> {
        self.sign(name, groups, &[], ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// Writes `FILE.crt` and `FILE.key` for a server by these names and addresses.
    pub(crate) fn server(&self, file: &str, names: &[&str], addresses: &[IpAddr]) -> Result<()> {
        let names = names.iter().map(|name| (*name).to_owned());
        let all: Vec<String> = names.chain(addresses.iter().map(IpAddr::to_string)).collect();
        let pair = self.sign(file, &[], &all, ExtendedKeyUsagePurpose::ServerAuth)?;
        self.write(file, &pair)
    }

    /// Writes `FILE.crt` and `FILE.key`.
    pub(crate) fn write(&self, file: &str, pair: &Pair) -> Result<()> {
        files::write(&self.path(&format!("{file}.crt")), &pair.certificate)?;
        files::write_secret(&self.path(&format!("{file}.key")), &pair.key)
    }

    /// Writes a key pair for service-account tokens: `sa.pub` and `sa.key`.
    pub(crate) fn service_account_keys(&self) -> Result<()> {
        let key = KeyPair::generate().context("cannot make the service-account key")?;
        files::write(&self.path("sa.pub"), &key.public_key_pem())?;
        files::write_secret(&self.path("sa.key"), &key.serialize_pem())
    }

    fn sign(
        &self,
        name: &str,
        groups: &[&str],
        alternative: &[String],
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<Pair> {
        let key = KeyPair::generate().context("cannot make a key")?;
        let mut params = CertificateParams::new(alternative).context("bad alternative names")?;
        params.distinguished_name.push(DnType::CommonName, name);
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        let certificate = params.signed_by(&key, &self.issuer).context("cannot sign a certificate")?;
        Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// Writes the kubeconfig `NAME.kubeconfig` of a user, for the API server at `server`, and gives its path.
    pub(crate) fn kubeconfig(
        &self,
        file: &str,
        cluster: &str,
        server: &str,
        user: &str,
        groups: &[&str],
    ) -> Result<PathBuf> {
        let pair = self.client(user, groups)?;
        // Kubeconfigs of several clusters may be used together.
        let user = format!("{user}@{cluster}");
        // JSON is YAML.
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": cluster,
            "clusters": [{"name": cluster, "cluster": {
                "server": server,
                "certificate-authority-data": STANDARD.encode(&self.certificate),
            }}],
            "users": [{"name": user, "user": {
                "client-certificate-data": STANDARD.encode(&pair.certificate),
                "client-key-data": STANDARD.encode(&pair.key),
            }}],
            "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": user}}],
        });
        let path = self.path(&format!("{file}.kubeconfig"));
        files::write_secret(&path, &serde_json::to_string_pretty(&config)?)?;
        Ok(path)
    }

    /// A file beside the authority's.
    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.directory.join(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubeconfig_holds_the_authority_and_the_user() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create("alpha", directory.path()).unwrap();
        let path = authority
            .kubeconfig("admin", "alpha", "https://10.0.0.1:6443", "admin", &["system:masters"])
            .unwrap();
        let config: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let data = config["clusters"][0]["cluster"]["certificate-authority-data"].as_str().unwrap();
        let ca = std::fs::read(directory.path().join("ca.crt")).unwrap();
        assert_eq!(STANDARD.decode(data).unwrap(), ca);
        authority.server("apiserver", &["localhost"], &["192.0.2.1".parse().unwrap()]).unwrap();
        authority.service_account_keys().unwrap();
        for file in ["apiserver.crt", "apiserver.key", "sa.key", "sa.pub"] {
            assert!(std::fs::read_to_string(authority.path(file)).unwrap().starts_with("-----BEGIN "));
        }
    }
}
