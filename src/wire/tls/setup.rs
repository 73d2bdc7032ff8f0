//! From the endpoint's settings to what a handshake needs.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

use super::verifier::{Roots, Trust, Verifier};
use crate::wire::endpoint::{ClientCertificate, Host, RootCertificates, SslMode, Tls};

/// Reads the certificate files and builds rustls' side of `tls`. Blocks on files. The error says what is wrong with which.
pub(in crate::wire) fn client_config(tls: &Tls) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Verifier { trust: trust(tls)?, algorithms: provider.signature_verification_algorithms };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    match &tls.client {
        None => Ok(builder.with_no_client_auth()),
        Some(client) => {
            let (chain, key) = read_client(client)?;
            let wrong =
                |error| format!("{} does not go with {}: {error}", client.key.display(), client.certificate.display());
            builder.with_client_auth_cert(chain, key).map_err(wrong)
        }
    }
}

/// The name the certificate must be for, which is also what the server is told it is called.
pub(in crate::wire) fn server_name(host: &Host) -> Result<ServerName<'static>, String> {
    match host {
        Host::Ip(address) => Ok(ServerName::IpAddress((*address).into())),
        Host::Name(name) => {
            ServerName::try_from(name.clone()).map_err(|_| format!("{name:?} cannot stand in a certificate"))
        }
        Host::Socket(_) => Err("there is no TLS on a Unix socket".to_owned()),
    }
}

/// What each mode asks of the certificate ("SSL Support", table of sslmode). With roots at hand the weaker modes check
/// the chain too, as libpq does for compatibility with its past.
fn trust(tls: &Tls) -> Result<Trust, String> {
    let roots = tls.root.as_ref().map(read_roots).transpose()?;
    match (tls.mode, roots) {
        (SslMode::VerifyFull, Some(roots)) => Ok(Trust::ChainAndName { roots }),
        (SslMode::VerifyCa | SslMode::Require | SslMode::Prefer | SslMode::Allow, Some(roots)) => {
            Ok(Trust::Chain { roots })
        }
        (SslMode::VerifyFull | SslMode::VerifyCa, None) => Err(format!(
            "sslmode={} needs to know whom to believe: give sslrootcert a file, or `system` for what this machine trusts",
            tls.mode.as_str()
        )),
        (SslMode::Disable | SslMode::Allow | SslMode::Prefer | SslMode::Require, _) => Ok(Trust::Anyone),
    }
}

fn read_roots(root: &RootCertificates) -> Result<Roots, String> {
    let mut store = RootCertStore::empty();
    match root {
        RootCertificates::System => {
            let found = rustls_native_certs::load_native_certs();
            let (added, _) = store.add_parsable_certificates(found.certs);
            if added == 0 {
                return Err("this machine has no trusted certificates (install ca-certificates)".to_owned());
            }
            Ok(Roots { store, given: Vec::new() })
        }
        RootCertificates::File(path) => {
            let given = read_certificates(path)?;
            for certificate in &given {
                // One that is no authority is still found in `given`.
                if let Err(error) = store.add(certificate.clone()) {
                    tracing::debug!(path = %path.display(), %error, "root certificate passed over");
                }
            }
            Ok(Roots { store, given })
        }
    }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let wrong = |error: rustls::pki_types::pem::Error| format!("read {}: {error}", path.display());
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(wrong)?.collect();
    let found = found.map_err(wrong)?;
    if found.is_empty() { Err(format!("{} holds no certificate in PEM form", path.display())) } else { Ok(found) }
}

type ClientChain = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn read_client(client: &ClientCertificate) -> Result<ClientChain, String> {
    refuse_if_readable_by_others(&client.key)?;
    let chain = read_certificates(&client.certificate)?;
    let wrong = |error| format!("read {}: {error} (expected an unencrypted PEM key)", client.key.display());
    Ok((chain, PrivateKeyDer::from_pem_file(&client.key).map_err(wrong)?))
}

/// libpq's rule: 0600, or 0640 where the file is root's (`initialize_SSL`).
fn refuse_if_readable_by_others(path: &Path) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt;
    let metadata = path.metadata().map_err(|error| format!("read {}: {error}", path.display()))?;
    let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.mode() & forbidden == 0 {
        Ok(())
    } else {
        Err(format!("others may read {}; chmod 600 it", path.display()))
    }
}
