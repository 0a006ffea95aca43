//! Who may connect.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use replication::channel::{self, ChannelError, Fingerprint, Identity, IdentityError, KeyRequest, Peer};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use crate::{Keys, LONG, listen, read};

/// What the listener and whoever connects find out about each other.
fn meet(listens: &Identity, connects: &Identity, expected: &str) -> [Result<String, ChannelError>; 2] {
    let (listener, address) = listen(listens);
    let accepting = thread::spawn(move || listener.accept());
    let connected = channel::connect(address, connects, expected, LONG);
    let accepted = accepting.join().unwrap();
    [accepted, connected].map(|end| end.map(|connection| connection.peer().to_owned()))
}

#[test]
fn hosts_of_a_cluster_know_each_other_by_name() {
    let keys = Keys::new();
    for name in ["b", "host-2.rack-1.example", "10-0-0-2"] {
        let [accepted, connected] =
            meet(&keys.identity(name), &Identity::load(&keys.path("a")).unwrap_or_else(|_| keys.identity("a")), name);
        assert_eq!((accepted.unwrap(), connected.unwrap()), ("a".to_owned(), name.to_owned()));
    }
}

#[test]
fn another_clusters_host_is_refused_by_both_sides() {
    let (keys, others) = (Keys::new(), Keys::new());
    let [accepted, connected] = meet(&keys.identity("b"), &others.identity("a"), "b");
    assert!(matches!(connected, Err(ChannelError::Tls(_))), "{connected:?}");
    assert!(accepted.is_err(), "{accepted:?}");
}

/// A client that trusts the server all right, but that the server has no reason to trust.
#[test]
fn whoever_the_authority_does_not_vouch_for_is_refused() {
    let (keys, others) = (Keys::new(), Keys::new());
    let (folder, other) = (keys.folder("a"), others.folder("a"));
    fs::copy(folder.join("ca.pem"), other.join("ca.pem")).unwrap();
    let [accepted, connected] = meet(&keys.identity("b"), &Identity::load(&other).unwrap(), "b");
    assert!(matches!(accepted, Err(ChannelError::Tls(_))), "{accepted:?}");
    assert!(connected.is_err(), "{connected:?}");
}

#[test]
fn no_certificate_is_not_enough() {
    let keys = Keys::new();
    let (listener, address) = listen(&keys.identity("b"));
    let mut roots = rustls::RootCertStore::empty();
    use rustls::pki_types::pem::PemObject;
    roots.add(rustls::pki_types::CertificateDer::from_pem_file(keys.path("b").join("ca.pem")).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let accepting = thread::spawn(move || listener.accept());
    let mut tls = ClientConnection::new(Arc::new(config), ServerName::try_from("b").unwrap()).unwrap();
    let mut socket = TcpStream::connect(address).unwrap();
    while tls.is_handshaking() {
        tls.complete_io(&mut socket).unwrap();
    }
    let accepted = accepting.join().unwrap();
    assert!(matches!(accepted, Err(ChannelError::Tls(_))), "it was accepted");
}

#[test]
fn another_host_of_the_cluster_does_not_pass_for_the_expected_one() {
    let keys = Keys::new();
    let [_, connected] = meet(&keys.identity("b"), &keys.identity("a"), "c");
    assert!(matches!(connected, Err(ChannelError::Tls(_))), "{connected:?}");
}

#[test]
fn garbage_and_silence_are_refused_and_a_host_can_connect_after_them() {
    let keys = Keys::new();
    let (a, b) = (keys.identity("a"), keys.identity("b"));
    let (listener, address) = listen(&b);
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 70_000], &[0x16, 3, 1, 0xff, 0xff, 1], b""] {
        let mut stream = TcpStream::connect(address).unwrap();
        // It may be closed before all of it is written.
        let _ = stream.write_all(garbage);
        drop(stream);
        assert!(listener.accept().is_err());
    }
    let silent = TcpStream::connect(address).unwrap();
    assert!(matches!(listener.accept(), Err(ChannelError::Timeout(_))));
    drop(silent);
    let accepting = thread::spawn(move || listener.accept());
    channel::connect(address, &a, "b", LONG).unwrap();
    accepting.join().unwrap().unwrap();
}

#[test]
fn a_peer_that_never_answers_does_not_hold_up_who_connects() {
    let keys = Keys::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let refused = channel::connect(address, &keys.identity("a"), "b", Duration::from_millis(200));
    assert!(matches!(refused, Err(ChannelError::Timeout(_))));
}

#[test]
fn keys_that_others_can_read_are_refused() {
    let keys = Keys::new();
    let folder = keys.folder("a");
    let path = folder.join("host.key");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(keys.path("authority").join("ca.key")).unwrap().permissions().mode() & 0o777, 0o600);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(Identity::load(&folder), Err(IdentityError::Readable { .. })));
}

#[test]
fn damaged_missing_and_mismatched_files_are_named() {
    let keys = Keys::new();
    let (a, b) = (keys.folder("a"), keys.folder("b"));
    for file in ["ca.pem", "host.pem", "host.key"] {
        let text = read(&a.join(file));
        for damaged in ["", "nonsense", &text[..text.len() / 2]] {
            fs::write(a.join(file), damaged).unwrap();
            let error = Identity::load(&a).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(file), "{error}");
        }
        fs::remove_file(a.join(file)).unwrap();
        let error = Identity::load(&a).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(file), "{error}");
        fs::write(a.join(file), text).unwrap();
        fs::set_permissions(a.join(file), fs::Permissions::from_mode(0o600)).unwrap();
    }
    Identity::load(&a).unwrap();
    fs::copy(b.join("host.key"), a.join("host.key")).unwrap();
    assert!(Identity::load(&a).is_err(), "another host's key was taken");
}

#[test]
fn existing_keys_are_not_overwritten_and_failures_leave_nothing_behind() {
    let keys = Keys::new();
    let authority = keys.path("authority");
    let before = read(&authority.join("ca.key"));
    assert!(channel::create_authority(&authority).is_err());
    assert_eq!(read(&authority.join("ca.key")), before);
    let folder = keys.folder("a");
    let before = read(&folder.join("host.key"));
    assert!(channel::issue(&authority, "a", &folder).is_err());
    assert_eq!(read(&folder.join("host.key")), before);
    let half = keys.path("half");
    fs::create_dir(&half).unwrap();
    fs::write(half.join("host.pem"), "in the way").unwrap();
    assert!(channel::issue(&authority, "c", &half).is_err());
    assert!(!half.join("host.key").exists());
    for name in ["", "a b", "-a", "a..b", "ä"] {
        assert!(
            matches!(channel::issue(&authority, name, &keys.path("none")), Err(IdentityError::Name(_))),
            "{name:?}"
        );
    }
}

/// Operators are vouched for by the same authority, and are no replicas.
#[test]
fn an_operator_of_the_cluster_is_not_taken_for_a_host() {
    let keys = Keys::new();
    let file = keys.path("alice.pem");
    let operator = channel::issue_operator(&keys.path("authority"), "alice").unwrap();
    fs::write(&file, operator.to_text()).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let alice = Identity::load_operator(&file).unwrap();
    assert_eq!(alice.peer(), &Peer::Operator("alice".to_owned()));
    let [accepted, _] = meet(&keys.identity("b"), &alice, "b");
    assert!(matches!(accepted, Err(ChannelError::Nameless)), "{accepted:?}");
    // Nor does it serve as one.
    let [_, connected] = meet(&alice, &keys.identity("a"), "alice.operator.twinvm.invalid");
    assert!(matches!(connected, Err(ChannelError::Tls(_))), "{connected:?}");
    for name in ["alice.operator.twinvm.invalid", "a.OPERATOR.twinvm.invalid"] {
        let issued = channel::issue(&keys.path("authority"), name, &keys.path("none"));
        assert!(matches!(issued, Err(IdentityError::Name(_))), "a host named {name}");
    }
    for name in ["", "a.b", "a b"] {
        assert!(channel::issue_operator(&keys.path("authority"), name).is_err(), "an operator named {name:?}");
    }
    // A host's keys are not an operator's, and the other way round.
    let folder = keys.folder("c");
    fs::write(
        &file,
        [
            fs::read(folder.join("host.pem")).unwrap(),
            fs::read(folder.join("host.key")).unwrap(),
            fs::read(folder.join("ca.pem")).unwrap(),
        ]
        .concat(),
    )
    .unwrap();
    assert!(Identity::load_operator(&file).is_err());
}

/// The keys of a session are of no use beyond it.
#[test]
fn keys_of_a_session_are_good_for_that_session_only() {
    let keys = Keys::new();
    let [a, b] = channel::session_keys(["a", "b"]).unwrap().map(|keys| Identity::from_keys(&keys).unwrap());
    let [other, _] = channel::session_keys(["a", "b"]).unwrap().map(|keys| Identity::from_keys(&keys).unwrap());
    let [accepted, connected] = meet(&b, &a, "b");
    assert_eq!((accepted.unwrap(), connected.unwrap()), ("a".to_owned(), "b".to_owned()));
    let [host_a, host_b] = ["a", "b"].map(|host| keys.identity(host));
    for (listens, connects) in [(&b, &host_a), (&b, &other), (&host_b, &a)] {
        let [accepted, connected] = meet(listens, connects, "b");
        assert!(accepted.is_err() && connected.is_err());
    }
}

#[test]
fn a_certificate_is_given_for_a_key_that_stays_where_it_was_made() {
    let authority = tempfile::tempdir().unwrap();
    channel::create_authority(authority.path()).unwrap();
    let asked = KeyRequest::new("b").unwrap();
    let certified = channel::sign_request(authority.path(), asked.request(), "b").unwrap();
    let again = channel::sign_request(authority.path(), asked.request(), "b").unwrap();
    assert_eq!(certified.key_digest, again.key_digest);
    let other = KeyRequest::new("b").unwrap();
    assert_ne!(channel::sign_request(authority.path(), other.request(), "b").unwrap().key_digest, again.key_digest);
    let keys = asked.certified(certified.authority.clone(), certified.certificate.clone());
    assert_eq!(Identity::from_keys(&keys).unwrap().peer(), &Peer::Host("b".to_owned()));
    assert!(Identity::from_keys(&other.certified(certified.authority, certified.certificate)).is_err());
    // The authority decides what the certificate says, whatever the request does.
    let named = channel::sign_request(authority.path(), asked.request(), "c").unwrap();
    let keys = asked.certified(named.authority, named.certificate);
    assert_eq!(Identity::from_keys(&keys).unwrap().peer(), &Peer::Host("c".to_owned()));
    // A request that its key has not signed is somebody else's.
    let mut lines: Vec<&str> = asked.request().lines().collect();
    let foreign: Vec<&str> = other.request().lines().collect();
    let last = lines.len() - 2;
    lines[last] = foreign[last];
    for wrong in [lines.join("\n"), String::new(), "x".repeat(1 << 16), certified.key_digest] {
        let refused = channel::sign_request(authority.path(), &wrong, "b");
        assert!(matches!(refused, Err(IdentityError::Request(_))), "{refused:?}");
    }
    for name in ["root.operator.twinvm.invalid", "", "a b"] {
        assert!(matches!(channel::sign_request(authority.path(), asked.request(), name), Err(IdentityError::Name(_))));
    }
}

#[test]
fn an_authority_is_known_by_its_fingerprint() {
    let (keys, others) = (Keys::new(), Keys::new());
    let folder = keys.folder("b");
    let identity = Identity::load(&folder).unwrap();
    for (fingerprint, name, is_trusted) in [
        (Fingerprint::of_authority(&folder).unwrap(), "b", true),
        (Fingerprint::of_authority(&folder).unwrap(), "c", false),
        (Fingerprint::of_authority(&others.folder("b")).unwrap(), "b", false),
    ] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = identity.open_server_config();
        let serving = thread::spawn(move || {
            let (socket, _) = listener.accept().unwrap();
            let tls = rustls::ServerConnection::new(server).unwrap();
            rustls::StreamOwned::new(tls, socket).write_all(b"x").is_ok()
        });
        let client = channel::pinned_client(fingerprint).unwrap();
        let client = ClientConnection::new(client, ServerName::try_from(name).unwrap()).unwrap();
        let mut stream = rustls::StreamOwned::new(client, TcpStream::connect(address).unwrap());
        let read = std::io::Read::read(&mut stream, &mut [0]);
        assert_eq!(read.is_ok(), is_trusted, "{name}: {read:?}");
        drop(stream);
        assert_eq!(serving.join().unwrap(), is_trusted);
        assert_eq!(fingerprint.to_string().parse::<Fingerprint>().unwrap(), fingerprint);
    }
    for wrong in ["", "0", &"0".repeat(63), &"0".repeat(66), &"g".repeat(64)] {
        assert!(wrong.parse::<Fingerprint>().is_err());
    }
}
