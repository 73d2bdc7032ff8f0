//! What we believe of a server that shows a certificate.

use std::fmt;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::verify_tls13_signature_with_raw_key;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use x509_cert::der::{Decode, Encode};

use super::name;

/// What is asked of the certificate.
pub(super) enum Trust {
    /// Nothing: the connection is encrypted, to whomever.
    Anyone,
    /// A chain to one of the roots, or the certificate itself among them.
    Chain { roots: Roots },
    /// The same, and it is for the host we meant.
    ChainAndName { roots: Roots },
}

pub(super) struct Roots {
    pub(super) store: RootCertStore,
    /// The same certificates as they stand in the file. A self-signed server certificate is its own root there, which
    /// is how PostgreSQL's manual shows it; a chain of length zero is none for the library.
    pub(super) given: Vec<CertificateDer<'static>>,
}

pub(super) struct Verifier {
    pub(super) trust: Trust,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn verify_chain(
        &self,
        roots: &Roots,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        if roots.given.iter().any(|given| given == certificate) {
            return verify_dates(certificate, now);
        }
        let parsed = ParsedCertificate::try_from(certificate)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &roots.store, intermediates, now, self.algorithms.all)
    }
}

fn verify_dates(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let wrong = |what| Error::InvalidCertificate(what);
    let decoded = x509_cert::Certificate::from_der(certificate).map_err(|_| wrong(CertificateError::BadEncoding))?;
    let validity = decoded.tbs_certificate.validity;
    if now.as_secs() < validity.not_before.to_unix_duration().as_secs() {
        return Err(wrong(CertificateError::NotValidYet));
    }
    if now.as_secs() > validity.not_after.to_unix_duration().as_secs() {
        return Err(wrong(CertificateError::Expired));
    }
    Ok(())
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.trust {
            Trust::Anyone => {}
            Trust::Chain { roots } => self.verify_chain(roots, certificate, intermediates, now)?,
            Trust::ChainAndName { roots } => {
                self.verify_chain(roots, certificate, intermediates, now)?;
                name::verify(certificate, server_name)?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if ParsedCertificate::try_from(certificate).is_ok() {
            return verify_tls13_signature(message, certificate, signed, &self.algorithms);
        }
        // A version 1 certificate, which `openssl x509 -req` makes and the library does not read: who holds its key is
        // still proven. `verify_server_cert` has refused it already where a chain was asked for.
        let key = public_key(certificate).ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
        verify_tls13_signature_with_raw_key(message, &key, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn public_key(certificate: &CertificateDer<'_>) -> Option<SubjectPublicKeyInfoDer<'static>> {
    let decoded = x509_cert::Certificate::from_der(certificate).ok()?;
    Some(decoded.tbs_certificate.subject_public_key_info.to_der().ok()?.into())
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.trust {
            Trust::Anyone => "anyone",
            Trust::Chain { .. } => "chain",
            Trust::ChainAndName { .. } => "chain and name",
        })
    }
}
