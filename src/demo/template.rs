//! An empty data directory, made once a machine and copied for each cluster: `initdb` costs a second, the copy a few
//! hundredths.
//!
//! A copy would share the original's system identifier, and two clusters that claim to be one are exactly what this
//! program refuses. So each copy gets an identifier of its own: the first field of `pg_control` (`ControlFileData`,
//! src/include/catalog/pg_control.h) with its CRC-32C, and the long header of the first page of each log segment
//! (`XLogLongPageHeaderData`, src/include/access/xlog_internal.h).

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::workspace::{server_uid, temporary_root};
use super::{Error, PostgresPrograms, Workspace};

/// Where `xlp_sysid` stands: behind `XLogPageHeaderData`, 20 bytes padded to 24.
const LONG_HEADER_SYSTEM_IDENTIFIER: u64 = 24;
/// The tail of `initdb`'s arguments, also what a template is named by: change one and the next run makes a new one.
const INITDB: [&str; 5] = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"];

/// Makes `workspace/data`: an empty cluster with superuser `postgres`, encoding UTF8, locale C.
pub(super) fn create_data_dir(workspace: &Workspace, programs: &PostgresPrograms) -> Result<PathBuf, Error> {
    let data = workspace.dir().join("data");
    let template = template_dir(programs)?;
    if !usable(&template)? {
        initdb(workspace, programs, &data)?;
        offer(workspace, &data, &template);
        return Ok(data);
    }
    copy(workspace, &template, &data)?;
    give_identity(&data).map_err(Error::file("change the system identifier of", &data))?;
    Ok(data)
}

fn template_dir(programs: &PostgresPrograms) -> Result<PathBuf, Error> {
    let key = crc32c(format!("{} {INITDB:?}", programs.bin.display()).as_bytes());
    let name = format!("changeover-template-{}-{}-{key:08x}", server_uid()?, programs.version);
    Ok(temporary_root().join(name))
}

/// Others can write to the temporary directory: a template counts only if it belongs to the user that servers run as.
fn usable(template: &Path) -> Result<bool, Error> {
    let owner = fs::symlink_metadata(template).ok().filter(fs::Metadata::is_dir).map(|metadata| metadata.uid());
    Ok(owner == Some(server_uid()?))
}

fn initdb(workspace: &Workspace, programs: &PostgresPrograms, data: &Path) -> Result<(), Error> {
    let mut command = workspace.command(programs.program("initdb"));
    command.arg("--pgdata").arg(data).args(INITDB);
    workspace.run(command).map(drop)
}

fn copy(workspace: &Workspace, from: &Path, to: &Path) -> Result<(), Error> {
    let mut command = workspace.command("cp");
    command.args(["-a", "--reflink=auto"]).arg(from).arg(to);
    workspace.run(command).map(drop)
}

/// Copies the new data directory aside and renames it into place. Whoever is second finds the place taken and leaves
/// its own copy to go with the workspace; that the template is missing costs time and nothing else.
fn offer(workspace: &Workspace, data: &Path, template: &Path) {
    let aside = workspace.dir().join("template");
    if copy(workspace, data, &aside).is_ok() && fs::rename(&aside, template).is_err() {
        tracing::debug!(template = %template.display(), "the template is there already");
    }
}

fn give_identity(data: &Path) -> io::Result<()> {
    let identifier = fastrand::u64(1 << 62..).to_ne_bytes();
    give_control_file(&data.join("global/pg_control"), &identifier)?;
    for entry in fs::read_dir(data.join("pg_wal"))? {
        let path = entry?.path();
        if path.is_file() {
            let segment = fs::OpenOptions::new().write(true).open(path)?;
            segment.write_all_at(&identifier, LONG_HEADER_SYSTEM_IDENTIFIER)?;
        }
    }
    Ok(())
}

/// The CRC is the struct's last field, and the struct's length differs by version; its place is found as the one where
/// the file as it is agrees with its CRC.
fn give_control_file(path: &Path, identifier: &[u8; 8]) -> io::Result<()> {
    const STRUCT_BYTES_MIN: usize = 200;
    let mut control = fs::read(path)?;
    let places = STRUCT_BYTES_MIN..control.len().min(512).saturating_sub(4);
    let agrees = |at: &usize| control.get(*at..*at + 4) == Some(&crc32c(&control[..*at]).to_ne_bytes());
    let Some(at) = places.into_iter().find(agrees) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no place holds the checksum of what stands before it"));
    };
    control[..8].copy_from_slice(identifier);
    let crc = crc32c(&control[..at]).to_ne_bytes();
    control[at..at + 4].copy_from_slice(&crc);
    fs::OpenOptions::new().write(true).open(path)?.write_all_at(&control, 0)
}

/// CRC-32C (Castagnoli), bit by bit: it runs over a few hundred bytes.
fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82F6_3B78;
    let fold = |crc: u32, _: u32| if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), fold))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnolis() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
    }
}
