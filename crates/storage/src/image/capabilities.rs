//! File capabilities in a tar archive.
//!
//! GNU tar keeps them in extended headers, as records `LENGTH SCHILY.xattr.security.capability=BYTES\n` (POSIX.1-2017, pax, "pax Extended Header";
//! the bytes are those of `struct vfs_cap_data`, Linux `include/uapi/linux/capability.h`). The library takes a byte 10 among them for the end of the
//! record, so records are read here.

use std::collections::BTreeMap;
use std::io::{self, Read};

/// The records with capabilities.
const CAPABILITY: &[u8] = b"SCHILY.xattr.security.capability";
/// The records with a path that does not fit into a header.
const PATH: &[u8] = b"path";
/// Most bytes of an extended header that are read.
const HEADER_BYTES_MAX: u64 = 1 << 20;
/// Most bytes that Linux takes for the capabilities of a file (`XATTR_CAPS_SZ`).
const CAPABILITY_BYTES_MAX: usize = 24;

/// The capabilities of the files in `archive`, by the path that the archive has for them.
///
/// # Errors
/// Of reading, and if an extended header is malformed or too long.
pub(crate) fn read(archive: impl Read) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut archive = tar::Archive::new(archive);
    let mut extended = Vec::new();
    for entry in archive.entries()?.raw(true) {
        let mut entry = entry?;
        if entry.header().entry_type().is_pax_local_extensions() {
            if entry.size() > HEADER_BYTES_MAX {
                return Err(malformed());
            }
            extended.clear();
            entry.read_to_end(&mut extended)?;
            continue;
        }
        if let Some(capability) = record(&extended, CAPABILITY)? {
            if capability.len() > CAPABILITY_BYTES_MAX {
                return Err(malformed());
            }
            let path = match record(&extended, PATH)? {
                Some(path) => path.to_vec(),
                None => entry.header().path_bytes().into_owned(),
            };
            found.insert(path, capability.to_vec());
        }
        extended.clear();
    }
    Ok(found)
}

/// The value of the last record with this name, which is the one that counts.
fn record<'a>(mut extended: &'a [u8], name: &[u8]) -> io::Result<Option<&'a [u8]>> {
    let mut value = None;
    while !extended.is_empty() {
        let space = extended.iter().position(|&byte| byte == b' ').ok_or_else(malformed)?;
        let (digits, _) = extended.split_at(space);
        let length: Option<usize> = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
        let (whole, rest) = length.and_then(|length| extended.split_at_checked(length)).ok_or_else(malformed)?;
        let body = whole.get(space + 1..).and_then(|body| body.strip_suffix(b"\n")).ok_or_else(malformed)?;
        let equals = body.iter().position(|&byte| byte == b'=').ok_or_else(malformed)?;
        let (key, with_equals) = body.split_at(equals);
        if key == name {
            value = with_equals.get(1..);
        }
        extended = rest;
    }
    Ok(value)
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "an extended header is malformed")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What `setcap cap_dac_override,cap_fowner+ep` writes: a byte 10 is among it.
    pub(crate) const OVERRIDE_AND_OWNER: [u8; 20] = [1, 0, 0, 2, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    /// What `setcap cap_net_raw+ep` writes.
    pub(crate) const RAW: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

    /// An archive of empty programs, each with such capabilities.
    pub(crate) fn archive(files: &[(&str, Option<&[u8]>)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, capability) in files {
            if let Some(capability) = capability {
                let records = [("mtime", &b"1700000000.5"[..]), ("SCHILY.xattr.security.capability", capability)];
                builder.append_pax_extensions(records).unwrap();
            }
            let mut header = tar::Header::new_ustar();
            header.set_mode(0o755);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(1_700_000_000);
            header.set_size(0);
            builder.append_data(&mut header, path, &[][..]).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn capabilities_are_read_whatever_bytes_they_have() {
        let archive = archive(&[
            ("usr/bin/plain", None),
            ("usr/bin/ping", Some(&RAW)),
            ("usr/bin/owner", Some(&OVERRIDE_AND_OWNER)),
            ("usr/bin/after", None),
        ]);
        let found = read(&archive[..]).unwrap();
        let expected = [("usr/bin/owner", OVERRIDE_AND_OWNER), ("usr/bin/ping", RAW)];
        assert_eq!(found, expected.map(|(path, bytes)| (path.as_bytes().to_vec(), bytes.to_vec())).into());
    }

    #[test]
    fn records_have_their_own_lengths_and_the_last_one_counts() {
        let extended = b"9 path=a\n30 mtime=1700000000.500000000\n12 path=b\nc\n";
        assert_eq!(record(extended, PATH).unwrap(), Some(&b"b\nc"[..]));
        assert_eq!(record(extended, CAPABILITY).unwrap(), None);
        assert_eq!(record(b"", PATH).unwrap(), None);
    }

    #[test]
    fn malformed_headers_are_errors() {
        for bad in
            [&b"9"[..], b"x path=a\n", b"90 path=a\n", b"8 path=a\n", b"0 path=a\n", b"7 patha\n", b"2 \n", b"-1 a=b\n"]
        {
            assert!(record(bad, PATH).is_err(), "{}", String::from_utf8_lossy(bad));
        }
        let long = archive(&[("ping", Some(&[0; 25]))]);
        assert!(read(&long[..]).is_err());
        assert!(read(&archive(&[("ping", Some(&RAW))])[..700]).is_err());
    }
}
