//! `tls-server-end-point` (RFC 5929): what ties a SCRAM exchange to the certificate that the server showed.

use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::der::{Any, Decode, Encode};

/// How the certificate's signature hashed it; MD5 and SHA-1 are replaced by SHA-256 (RFC 5929, section 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hash {
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

/// Signature and digest algorithms (RFC 3279, 4055, 5758, 8017).
const ALGORITHMS: &[(&str, Hash)] = &[
    ("1.2.840.113549.1.1.4", Hash::Sha256),   // md5WithRSAEncryption
    ("1.2.840.113549.1.1.5", Hash::Sha256),   // sha1WithRSAEncryption
    ("1.2.840.113549.1.1.14", Hash::Sha224),  // sha224WithRSAEncryption
    ("1.2.840.113549.1.1.11", Hash::Sha256),  // sha256WithRSAEncryption
    ("1.2.840.113549.1.1.12", Hash::Sha384),  // sha384WithRSAEncryption
    ("1.2.840.113549.1.1.13", Hash::Sha512),  // sha512WithRSAEncryption
    ("1.2.840.10045.4.1", Hash::Sha256),      // ecdsa-with-SHA1
    ("1.2.840.10045.4.3.1", Hash::Sha224),    // ecdsa-with-SHA224
    ("1.2.840.10045.4.3.2", Hash::Sha256),    // ecdsa-with-SHA256
    ("1.2.840.10045.4.3.3", Hash::Sha384),    // ecdsa-with-SHA384
    ("1.2.840.10045.4.3.4", Hash::Sha512),    // ecdsa-with-SHA512
    ("1.3.14.3.2.26", Hash::Sha256),          // SHA-1
    ("2.16.840.1.101.3.4.2.4", Hash::Sha224), // SHA-224
    ("2.16.840.1.101.3.4.2.1", Hash::Sha256), // SHA-256
    ("2.16.840.1.101.3.4.2.2", Hash::Sha384), // SHA-384
    ("2.16.840.1.101.3.4.2.3", Hash::Sha512), // SHA-512
];
const RSASSA_PSS: &str = "1.2.840.113549.1.1.10";

/// The channel binding of a connection whose server showed this certificate; `None` for signatures that have no hash
/// of their own (Ed25519), for which neither RFC 5929 nor the server knows one.
pub(in crate::wire) fn server_end_point(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let parsed = x509_cert::Certificate::from_der(certificate).ok()?;
    let algorithm = &parsed.signature_algorithm;
    let hash = if algorithm.oid.to_string() == RSASSA_PSS {
        pss_hash(algorithm.parameters.as_ref())?
    } else {
        hash_of(&algorithm.oid)?
    };
    Some(match hash {
        Hash::Sha224 => Sha224::digest(certificate).to_vec(),
        Hash::Sha256 => Sha256::digest(certificate).to_vec(),
        Hash::Sha384 => Sha384::digest(certificate).to_vec(),
        Hash::Sha512 => Sha512::digest(certificate).to_vec(),
    })
}

fn hash_of(oid: &ObjectIdentifier) -> Option<Hash> {
    let oid = oid.to_string();
    ALGORITHMS.iter().find(|(known, _)| *known == oid).map(|(_, hash)| *hash)
}

/// `RSASSA-PSS-params ::= SEQUENCE { hashAlgorithm [0] AlgorithmIdentifier DEFAULT sha1, … }`
fn pss_hash(parameters: Option<&Any>) -> Option<Hash> {
    use x509_cert::der::asn1::ContextSpecific;
    use x509_cert::der::{Reader, SliceReader, TagNumber};
    use x509_cert::spki::AlgorithmIdentifierOwned;

    let Some(parameters) = parameters else { return Some(Hash::Sha256) };
    let encoded = parameters.to_der().ok()?;
    let mut reader = SliceReader::new(&encoded).ok()?;
    let hash = reader
        .sequence(|fields| {
            ContextSpecific::<AlgorithmIdentifierOwned>::decode_explicit(fields, TagNumber::N0).and_then(|hash| {
                // What follows the hash (mask function, salt length) is not asked for.
                while !fields.is_finished() {
                    Any::decode(fields)?;
                }
                Ok(hash)
            })
        })
        .ok()?;
    hash.map_or(Some(Hash::Sha256), |hash| hash_of(&hash.value.oid))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(algorithm: &'static rcgen::SignatureAlgorithm, length_bytes: Option<usize>) {
        let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let certificate = rcgen::CertificateParams::new(["blue".to_owned()]).unwrap().self_signed(&key).unwrap();
        assert_eq!(server_end_point(certificate.der()).map(|hash| hash.len()), length_bytes);
    }

    #[test]
    fn the_hash_is_the_one_of_the_certificates_signature() {
        check(&rcgen::PKCS_ECDSA_P256_SHA256, Some(32));
        check(&rcgen::PKCS_ECDSA_P384_SHA384, Some(48));
        check(&rcgen::PKCS_ED25519, None);
    }

    #[test]
    fn old_signatures_are_bound_with_sha256() {
        let oid = |text: &str| ObjectIdentifier::new(text).unwrap();
        assert_eq!(hash_of(&oid("1.2.840.113549.1.1.5")), Some(Hash::Sha256));
        assert_eq!(hash_of(&oid("1.2.840.113549.1.1.13")), Some(Hash::Sha512));
        assert_eq!(pss_hash(None), Some(Hash::Sha256));
    }

    #[test]
    fn no_certificate_has_no_binding() {
        assert_eq!(server_end_point(&CertificateDer::from(vec![1, 2, 3])), None);
    }
}
