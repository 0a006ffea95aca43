//! Where a store of one machine may be.

use std::path::Path;

use super::StoreError;

/// Refuses a store on the file system of `place`, if that is one between machines.
pub fn check_file_system(store: &Path, place: &Path) -> Result<(), StoreError> {
    // What cannot be looked at cannot be opened either, and says why then.
    let Ok(found) = rustix::fs::statfs(place) else { return Ok(()) };
    match network_file_system(found.f_type as u32) {
        None => Ok(()),
        Some(name) => {
            let why = format!("it is on {name}, where two machines could both win; put it on a local file system");
            Err(unreachable(store, &why))
        }
    }
}

/// The name of a file system between machines, by its magic number (statfs(2)): their memory mappings, by which the users of a
/// write-ahead log know of each other, do not reach from one machine to another.
fn network_file_system(magic: u32) -> Option<&'static str> {
    match magic {
        0x6969 => Some("NFS"),
        0x517b | 0xff53_4d42 | 0xfe53_4d42 => Some("SMB"),
        0x00c3_6400 => Some("CephFS"),
        0x5346_414f => Some("AFS"),
        _ => None,
    }
}

/// What is wrong with the store at a path.
pub fn unreachable(path: &Path, what: &str) -> StoreError {
    StoreError::Unreachable(format!("{}: {what}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_between_machines_are_told_from_local_ones() {
        for magic in [0x6969, 0x517b, 0xff53_4d42, 0xfe53_4d42, 0x00c3_6400, 0x5346_414f] {
            assert!(network_file_system(magic).is_some(), "{magic:#x}");
        }
        // ext4, XFS, Btrfs, tmpfs, overlayfs.
        for magic in [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x794c_7630] {
            assert_eq!(network_file_system(magic), None, "{magic:#x}");
        }
    }
}
