//! TLS of the API: the server's certificate, and who the client is.
//!
//! A client shows a self-signed certificate of its cluster's Ed25519 key. The certificate's contents mean
//! nothing; TLS 1.3's CertificateVerify (RFC 8446 section 4.4.3) proves that the client holds the key, and
//! the key is looked up in the grant that each request carries.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use podspan_wire::PublicKey;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, ServerConfig,
    SignatureScheme,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM file cannot be used.
    #[error("{key} {path}: {why}")]
    File {
        /// The configuration key.
        key: &'static str,
        /// Which file.
        path: PathBuf,
        /// What is wrong with it and what to do.
        why: String,
    },
    /// Certificate and key do not go together, or rustls cannot use them.
    #[error("certificate {certificate} and private-key {key} cannot be used: {why}")]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What rustls said.
        why: Error,
    },
}

/// The TLS configuration of the API: TLS 1.3 only, client certificates required.
///
/// # Errors
/// [`TlsError`], naming the file.
pub fn server_config(certificate: &Path, private_key: &Path) -> Result<ServerConfig, TlsError> {
    let chain = read_chain(certificate)?;
    let key = read_key(private_key)?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = AnyClusterKey { algorithms: provider.signature_verification_algorithms };
    ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .and_then(|builder| {
            builder.with_client_cert_verifier(Arc::new(verifier)).with_single_cert(chain, key)
        })
        .map_err(|why| TlsError::Pair { certificate: certificate.into(), key: private_key.into(), why })
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let file = |why: String| TlsError::File { key: "certificate", path: path.to_owned(), why };
    let chain = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|why| file(pem_fault(&why)))?;
    if chain.is_empty() {
        return Err(file("holds no certificate: it must be PEM, the server's own certificate first".into()));
    }
    Ok(chain)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let file = |why: String| TlsError::File { key: "private-key", path: path.to_owned(), why };
    let about = std::fs::metadata(path).map_err(|why| file(why.to_string()))?;
    let mode = about.permissions().mode();
    // A Secret in Kubernetes is root's, and its readers are of the file's group: nobody else may use it then.
    let others = if about.uid() == 0 { 0o037 } else { 0o077 };
    if mode & others != 0 {
        return Err(file(format!(
            "others than its owner may use it (mode {:04o}): run `chmod 600 {}`",
            mode & 0o7777,
            path.display()
        )));
    }
    PrivateKeyDer::from_pem_file(path).map_err(|why| file(pem_fault(&why)))
}

/// The fault of a PEM file in words that never quote its contents.
fn pem_fault(error: &rustls::pki_types::pem::Error) -> String {
    use rustls::pki_types::pem::Error as Pem;
    match error {
        Pem::Io(why) => why.to_string(),
        Pem::NoItemsFound => "holds nothing of the kind expected, in PEM".into(),
        _ => "is not valid PEM".into(),
    }
}

/// The Ed25519 key (RFC 8410) of a client's certificate.
///
/// # Errors
/// What is wrong with the certificate.
pub fn cluster_key(certificate: &CertificateDer<'_>) -> Result<PublicKey, &'static str> {
    let (rest, parsed) =
        X509Certificate::from_der(certificate).map_err(|_| "the certificate cannot be read")?;
    if !rest.is_empty() {
        return Err("bytes follow the certificate");
    }
    let key = &parsed.tbs_certificate.subject_pki;
    if key.algorithm.algorithm != x509_parser::oid_registry::OID_SIG_ED25519 {
        return Err("the certificate's key is not an Ed25519 key");
    }
    let bytes: [u8; 32] = key
        .subject_public_key
        .data
        .as_ref()
        .try_into()
        .map_err(|_| "the certificate's key is not of 32 bytes")?;
    PublicKey::from_bytes(bytes).map_err(|_| "the certificate's key is not usable")
}

/// Takes any certificate of an Ed25519 key whose holder proves that it has it.
#[derive(Debug)]
struct AnyClusterKey {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for AnyClusterKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    /// Neither the signer nor the time of the certificate is looked at: a client may have made it this
    /// second, with a clock an hour off.
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if !intermediates.is_empty() {
            return Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
        }
        match cluster_key(end_entity) {
            Ok(_) => Ok(ClientCertVerified::assertion()),
            Err(why) => {
                tracing::debug!(why, "a client's certificate was refused");
                Err(Error::InvalidCertificate(CertificateError::BadEncoding))
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}
