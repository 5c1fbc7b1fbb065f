//! TLS of the client: trust in one certificate authority, and a certificate of the cluster's key.

use std::sync::Arc;
use std::time::Duration;

use podspan_wire::ClusterKey;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::config::SetupError;

/// How far off the clock may be before a certificate's time counts against it.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(2 * 3600);

/// The TLS configuration: TLS 1.3 only, no other authority than `authority_pem`.
pub(super) fn client_config(authority_pem: &str, key: &ClusterKey) -> Result<ClientConfig, SetupError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let bad_authority = |why: String| SetupError::Authority(why);
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authority_pem.as_bytes()) {
        let certificate = certificate.map_err(|_| bad_authority("it is not PEM".into()))?;
        roots.add(certificate).map_err(|why| bad_authority(why.to_string()))?;
    }
    if roots.is_empty() {
        return Err(bad_authority("it holds no certificate in PEM".into()));
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|why| bad_authority(why.to_string()))?;

    let bad_certificate = |why: &dyn std::fmt::Display| SetupError::Certificate(why.to_string());
    let pkcs8 = key.to_pkcs8();
    let der = PrivatePkcs8KeyDer::from(pkcs8.as_slice());
    let pair = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ED25519)
        .map_err(|why| bad_certificate(&why))?;
    // Of the certificate only the key counts; its times span centuries by rcgen's default.
    let certificate =
        rcgen::CertificateParams::default().self_signed(&pair).map_err(|why| bad_certificate(&why))?;
    ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .and_then(|builder| {
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Tolerant { inner: verifier }))
                .with_client_auth_cert(vec![certificate.der().clone()], der.clone_key().into())
        })
        .map_err(|why| bad_certificate(&why))
}

/// webpki's verifier, for a host whose clock may be off: a certificate that is valid at some time within
/// [`CLOCK_TOLERANCE`] of now is good. Nothing else is relaxed.
#[derive(Debug)]
struct Tolerant {
    inner: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for Tolerant {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let at =
            |now| self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        let seconds = now.as_secs();
        let shifted = match at(now) {
            Err(Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            )) => seconds.saturating_sub(CLOCK_TOLERANCE.as_secs()),
            Err(Error::InvalidCertificate(
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
            )) => seconds.saturating_add(CLOCK_TOLERANCE.as_secs()),
            decided => return decided,
        };
        at(UnixTime::since_unix_epoch(Duration::from_secs(shifted)))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An authority, and a certificate of it for `broker.example` that holds for the year 2026.
    fn certificates() -> (Tolerant, CertificateDer<'static>) {
        let authority_key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = params.self_signed(&authority_key).unwrap();
        let issuer = rcgen::Issuer::new(params, authority_key);
        let mut params = rcgen::CertificateParams::new(vec!["broker.example".into()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2027, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(authority.der().clone()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        (Tolerant { inner }, certificate.der().clone())
    }

    #[test]
    fn a_clock_an_hour_off_is_tolerated_and_nothing_more() {
        const BEGIN: u64 = 1_767_225_600; // 2026-01-01T00:00:00Z
        const END: u64 = 1_798_761_600; // 2027-01-01T00:00:00Z
        let (verifier, certificate) = certificates();
        let verify = |name: &str, at: u64| {
            let name = ServerName::try_from(name.to_owned()).unwrap();
            let at = UnixTime::since_unix_epoch(Duration::from_secs(at));
            verifier.verify_server_cert(&certificate, &[], &name, &[], at)
        };
        for good in [BEGIN - 3600, BEGIN, END - 1, END + 3600] {
            verify("broker.example", good).unwrap();
        }
        for bad in [0, BEGIN - 3 * 3600, END + 3 * 3600] {
            verify("broker.example", bad).unwrap_err();
        }
        verify("other.example", BEGIN).unwrap_err();
        verify("other.example", BEGIN - 3600).unwrap_err();
    }
}
