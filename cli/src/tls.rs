//! The brokers' TLS: a certificate authority of the cluster set's own, and the certificate it signs.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use podspan_wire::UnixTime;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SanType, SerialNumber,
    date_time_ymd,
};
use x509_parser::pem::Pem;
use zeroize::Zeroizing;

use crate::broker_address::{BrokerAddress, Host};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// A certificate holds from a day before it is made: for clocks that lag.
const BACKDATED: Duration = DAY;
/// How long the authority holds.
const CA_LIFE: Duration = Duration::from_secs(3652 * 24 * 60 * 60);
/// How long a broker's certificate holds.
const SERVER_LIFE: Duration = Duration::from_secs(730 * 24 * 60 * 60);

/// A certificate and its secret key, both PEM.
pub(crate) struct Pair {
    /// The certificate.
    pub(crate) certificate: String,
    /// The secret key, PKCS #8.
    pub(crate) key: Zeroizing<String>,
}

/// Makes the authority of the cluster set `name`: ECDSA P-256, 10 years, may sign servers only.
pub(crate) fn make_authority(name: &str, now: UnixTime) -> Result<Pair> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("cannot make the brokers' CA key")?;
    let mut params = params("podspan broker CA", name, now, now.after(CA_LIFE))?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key).context("cannot sign the brokers' CA certificate")?;
    Ok(Pair { certificate: certificate.pem(), key: Zeroizing::new(key.serialize_pem()) })
}

/// Makes a key for a broker: ECDSA P-256, PEM.
pub(crate) fn make_key() -> Result<Zeroizing<String>> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("cannot make the broker's TLS key")?;
    Ok(Zeroizing::new(key.serialize_pem()))
}

/// Signs the certificate of the brokers at these addresses: 2 years, at most as long as the authority.
pub(crate) fn sign_server(
    name: &str,
    authority: &Pair,
    key: &str,
    brokers: &[BrokerAddress],
    now: UnixTime,
) -> Result<String> {
    let key = KeyPair::from_pem(key).context("the broker's TLS key cannot be read")?;
    let ca_key = KeyPair::from_pem(&authority.key).context("the brokers' CA key cannot be read")?;
    let ca = parse(&authority.certificate)?;
    let ca = ca.parse_x509().context("the brokers' CA certificate cannot be read")?;
    if ca.public_key().raw != ca_key.subject_public_key_info() {
        bail!(
            "the brokers' CA key is not the key of the CA certificate: they are of different cluster sets; \
             restore the one that belongs here from its backup"
        );
    }
    let ca_end = UnixTime(u64::try_from(ca.validity().not_after.timestamp()).unwrap_or(0));
    if ca_end <= now {
        bail!("the brokers' CA certificate ended at {ca_end}: it can sign no more");
    }
    let mut params = params("podspan broker", name, now, now.after(SERVER_LIFE).min(ca_end))?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    for broker in brokers {
        let san = match &broker.host {
            Host::Name(name) => {
                SanType::DnsName(name.as_str().try_into().context("a broker's name is not ASCII")?)
            }
            Host::Address(address) => SanType::IpAddress(*address),
        };
        if !params.subject_alt_names.contains(&san) {
            params.subject_alt_names.push(san);
        }
    }
    let issuer = Issuer::from_ca_cert_pem(&authority.certificate, ca_key)
        .context("the brokers' CA certificate cannot be read")?;
    Ok(params.signed_by(&key, &issuer).context("cannot sign the broker's certificate")?.pem())
}

/// When a PEM certificate ends.
pub(crate) fn not_after(certificate: &str) -> Result<UnixTime> {
    let pem = parse(certificate)?;
    let end = pem.parse_x509().context("the certificate cannot be read")?.validity().not_after.timestamp();
    Ok(UnixTime(u64::try_from(end).unwrap_or(0)))
}

fn parse(certificate: &str) -> Result<Pem> {
    let (pem, _) = Pem::read(std::io::Cursor::new(certificate)).context("this is not a PEM certificate")?;
    Ok(pem)
}

fn params(common: &str, organization: &str, now: UnixTime, end: UnixTime) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, organization);
    params.distinguished_name.push(DnType::CommonName, common);
    let start = UnixTime(now.0.saturating_sub(BACKDATED.as_secs()));
    params.not_before = date_time_ymd(1970, 1, 1) + Duration::from_secs(start.0);
    params.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(end.0);
    // RFC 5280 section 4.1.2.2: positive, unique to the authority, at most 20 bytes.
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).map_err(|e| anyhow::anyhow!("the system's random source failed: {e}"))?;
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

/// The clock of this machine; refuses one that is so wrong that everything signed now would be useless.
pub(crate) fn now() -> Result<UnixTime> {
    const YEAR_2024: u64 = 1_704_067_200;
    const YEAR_2100: u64 = 4_102_444_800;
    let now = UnixTime::from(SystemTime::now());
    if !(YEAR_2024..YEAR_2100).contains(&now.0) {
        bail!("this machine's clock says {now}: set it, then try again");
    }
    Ok(now)
}
