//! Whether a certificate is for the host we meant.

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, Error};
use x509_cert::der::Decode;
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

/// As libpq does it ("SSL Support", `pq_verify_peer_name_matches_certificate`): by the alternative names; by the
/// common name only where the certificate has no alternative name of any host.
pub(super) fn verify(certificate: &CertificateDer<'_>, name: &ServerName<'_>) -> Result<(), Error> {
    let parsed = ParsedCertificate::try_from(certificate)?;
    let refused = match rustls::client::verify_server_name(&parsed, name) {
        Ok(()) => return Ok(()),
        Err(refused) => refused,
    };
    let decoded = x509_cert::Certificate::from_der(certificate)
        .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
    if !names_a_host(&decoded) && matches_common_name(&decoded, &name.to_str()) { Ok(()) } else { Err(refused) }
}

fn names_a_host(certificate: &x509_cert::Certificate) -> bool {
    let Ok(Some((_, names))) = certificate.tbs_certificate.get::<SubjectAltName>() else { return false };
    names.0.iter().any(|name| matches!(name, GeneralName::DnsName(_) | GeneralName::IpAddress(_)))
}

fn matches_common_name(certificate: &x509_cert::Certificate, host: &str) -> bool {
    let attributes = certificate.tbs_certificate.subject.0.iter().flat_map(|part| part.0.iter());
    attributes.filter(|attribute| attribute.oid == COMMON_NAME).any(|attribute| {
        // The value's bytes are the text in each of the string types that a name has in practice.
        std::str::from_utf8(attribute.value.value()).is_ok_and(|pattern| matches_pattern(pattern, host))
    })
}

/// `*.` at the front stands for one label, and never for a part of an address.
fn matches_pattern(pattern: &str, host: &str) -> bool {
    if pattern.eq_ignore_ascii_case(host) {
        return true;
    }
    let is_address = host.parse::<std::net::IpAddr>().is_ok();
    match (pattern.strip_prefix("*."), host.split_once('.')) {
        (Some(suffix), Some((label, rest))) => !is_address && !label.is_empty() && suffix.eq_ignore_ascii_case(rest),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(common_name: &str, alternative: &[&str], host: &str, expected: bool) {
        let names: Vec<String> = alternative.iter().map(|name| (*name).to_owned()).collect();
        let mut parameters = rcgen::CertificateParams::new(names).unwrap();
        parameters.distinguished_name.push(rcgen::DnType::CommonName, common_name);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = parameters.self_signed(&key).unwrap();
        let name = ServerName::try_from(host.to_owned()).unwrap();
        assert_eq!(verify(certificate.der(), &name).is_ok(), expected, "{common_name} {alternative:?} {host}");
    }

    #[test]
    fn alternative_names_decide_where_there_are_any() {
        check("blue", &["green.example"], "green.example", true);
        check("blue", &["green.example"], "blue", false);
        check("x", &["*.example.org"], "blue.example.org", true);
        check("x", &["*.example.org"], "a.blue.example.org", false);
        check("x", &["192.0.2.7"], "192.0.2.7", true);
        check("192.0.2.7", &["192.0.2.8"], "192.0.2.7", false);
    }

    #[test]
    fn the_common_name_decides_where_there_are_none() {
        check("blue.example", &[], "BLUE.example", true);
        check("*.example", &[], "blue.example", true);
        check("*.example", &[], "a.blue.example", false);
        check("*.0.2.7", &[], "192.0.2.7", false);
        check("blue", &[], "green", false);
    }
}
