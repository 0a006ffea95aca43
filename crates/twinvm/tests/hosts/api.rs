//! The REST API as a client meets it that is not this program.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;

use replication::channel::Identity;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

use crate::client::Client;
use crate::world::{VM, World};

fn address(world: &World, host: &str) -> SocketAddr {
    let daemon = std::fs::read_to_string(world.path(host).join("daemon.json")).unwrap();
    let daemon: Value = serde_json::from_str(&daemon).unwrap();
    daemon["api"].as_str().unwrap().parse().unwrap()
}

/// Sends a request to host a, and returns everything that comes back.
fn exchange(config: Arc<ClientConfig>, address: SocketAddr, request: &[u8]) -> Result<String, std::io::Error> {
    exchange_with("a", config, address, request)
}

fn exchange_with(
    host: &str,
    config: Arc<ClientConfig>,
    address: SocketAddr,
    request: &[u8],
) -> Result<String, std::io::Error> {
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let connection = ClientConnection::new(config, name).map_err(std::io::Error::other)?;
    let mut stream = StreamOwned::new(connection, TcpStream::connect(address)?);
    stream.write_all(request)?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        // The server may not say good-bye.
        Err(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => return Err(error),
        _ => {}
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// A client that trusts the cluster's authority, with a certificate of its own or none.
fn client(cluster: &Path, own: Option<&Path>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(cluster.join("ca.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots);
    Arc::new(match own {
        None => config.with_no_client_auth(),
        Some(keys) => {
            let chain = vec![CertificateDer::from_pem_file(keys.join("host.pem")).unwrap()];
            config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(keys.join("host.key")).unwrap()).unwrap()
        }
    })
}

fn request(method: &str, path: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
    )
    .into()
}

#[test]
fn only_hosts_of_the_cluster_are_served() {
    let world = World::of(&["a"]);
    let (address, keys) = (address(&world, "a"), world.path("a").join("keys"));
    let get = request("GET", "/v1/host", "", "");
    let identity = Identity::load(&keys).unwrap();
    let answer = exchange(identity.client_config(), address, &get).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"host\":\"a\""), "{answer}");

    let other = world.path("other");
    replication::channel::create_authority(&other).unwrap();
    replication::channel::issue(&other, "a", &world.path("other-keys")).unwrap();
    let others = client(&keys, Some(&world.path("other-keys")));
    let error = exchange(others, address, &get).expect_err("another cluster's host");
    // The refusal comes as a TLS alert, or as a closed connection if the request was under way.
    assert!(!error.to_string().is_empty(), "{error}");
    // Who has no certificate may ask for one with a token, and for nothing else; and not for long.
    for (method, path) in [("GET", "/v1/host"), ("GET", "/v1/hosts"), ("POST", "/v1/tokens"), ("POST", "/v1/host/stop")]
    {
        let answer = exchange(client(&keys, None), address, &request(method, path, "", "")).unwrap();
        assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("that of nobody"), "{path}: {answer}");
    }
    let json = "Content-Type: application/json\r\n";
    let large = format!("{{\"secret\":\"{}\"}}", "x".repeat(17 << 10));
    let answer = exchange(client(&keys, None), address, &request("POST", "/v1/join", json, &large)).unwrap();
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let guess = r#"{"secret":"0","host":"b","request":""}"#;
    let answer = exchange(client(&keys, None), address, &request("POST", "/v1/join", json, guess)).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("is not known here"), "{answer}");
    // A host of another cluster does not take this one for its own either.
    let stranger = Identity::load(&world.path("other-keys")).unwrap();
    exchange(stranger.client_config(), address, &get).expect_err("an unknown authority was trusted");
    // Plain HTTP, and bytes that mean nothing.
    for bytes in [&b"GET /v1/host HTTP/1.1\r\nHost: a\r\n\r\n"[..], &[0; 64]] {
        let mut plain = TcpStream::connect(address).unwrap();
        plain.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        let _ = plain.read_to_end(&mut answer);
        assert!(!String::from_utf8_lossy(&answer).contains("200"), "{answer:?}");
    }
    let answer = exchange(identity.client_config(), address, &get).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn malformed_requests_are_refused_in_json() {
    let world = World::of(&["a"]);
    let address = address(&world, "a");
    let host = Identity::load(&world.path("a").join("keys")).unwrap();
    let identity = Identity::load_operator(&world.operator()).unwrap();
    let json = "Content-Type: application/json\r\n";
    let large = format!("{{\"spec\":\"{}\"}}", "x".repeat(2 << 20));
    for (method, path, headers, body, expected) in [
        ("GET", "/", "", "", 404),
        ("GET", "/v2/vms", "", "", 404),
        ("GET", "/v1/vms/%ff", "", "", 400),
        ("GET", "/v1/vms/..%2f..%2fx", "", "", 404),
        ("GET", "/v1/vms/x", "", "", 404),
        ("PUT", "/v1/vms", "", "", 405),
        ("POST", "/v1/vms", "", "", 415),
        ("POST", "/v1/vms", json, "", 400),
        ("POST", "/v1/vms", json, "{", 400),
        ("POST", "/v1/vms", json, "[]", 422),
        ("POST", "/v1/vms", json, "{\"spec\":7}", 422),
        ("POST", "/v1/vms", json, "{\"spec\":\"x\"}", 400),
        ("POST", "/v1/vms", json, "{\"spec\":\"\",\"more\":1}", 422),
        (
            "POST",
            "/v1/vms",
            json,
            "{\"spec\":\"name = \\\"../x\\\"\\nmemory = \\\"128M\\\"\\nkernel = \\\"/k\\\"\\n\"}",
            400,
        ),
        ("POST", "/v1/vms", json, &large, 413),
        ("POST", "/v1/vms/x/start", json, "{\"from_stale_disks\":1}", 404),
        ("POST", "/v1/vms/x/ft/dance", "", "", 404),
        ("GET", "/v1/vms/x/snapshots", "", "", 404),
        ("POST", "/v1/vms/x/snapshots", json, "{\"name\":\"a\"}", 404),
        ("DELETE", "/v1/vms/x/snapshots/..%2fy", "", "", 404),
        ("POST", "/v1/vms/x/ft/mode", json, "{\"mode\":\"lockstep\"}", 404),
        ("GET", "/v1/vms/x/console", "", "", 404),
        ("GET", "/v1/vms/x/boot/kernel", "", "", 404),
        ("PUT", "/v1/secondaries/x", json, "{}", 422),
        ("DELETE", "/v1/secondaries/..%2fx", json, "{\"remove_disks\":true}", 400),
        ("DELETE", "/v1/secondaries/x", json, "{\"remove_disks\":1}", 422),
        ("DELETE", "/v1/hosts/x", "", "", 404),
        ("POST", "/v1/host/stop", "", "{\"with_vms\":7}", 422),
    ] {
        let is_for_hosts = path.contains("/boot/") || path.contains("/secondaries/");
        let identity = if is_for_hosts { &host } else { &identity };
        // A refusal of a large body may come while it is still being sent.
        let answer = match exchange(identity.client_config(), address, &request(method, path, headers, body)) {
            Err(_) if expected == 413 => continue,
            answer => answer.unwrap(),
        };
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{method} {path}: {answer}");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.to_lowercase().contains("content-type: application/json"), "{method} {path}: {head}");
        let problem: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}"));
        assert!(!problem["error"].as_str().unwrap().is_empty(), "{method} {path}: {body}");
    }
    // What is not even HTTP ends the connection.
    let answer = exchange(identity.client_config(), address, b"\x00\x01\x02\r\n\r\n").unwrap_or_default();
    assert!(!answer.starts_with("HTTP/1.1 2"), "{answer}");
    assert_eq!(world.json("a", &["host", "list"]).as_array().unwrap().len(), 1, "the daemon is as before");
}

/// As when protection is turned off in the moment of a takeover: whichever replica the claim names may be the one with the newest disks.
#[test]
fn a_replica_that_the_claim_names_is_not_ended_by_request() {
    let mut world = World::of(&["a", "b"]);
    world.boot_redis("a");
    world.done("a", &["ft", "on", VM, "--yes"]);
    let redis = Client::start(world.address());
    let identity = Identity::load(&world.path("a").join("keys")).unwrap();
    let path = format!("/v1/secondaries/{VM}");
    let drop = request("DELETE", &path, "Content-Type: application/json\r\n", "{\"remove_disks\":true}");
    for host in ["a", "b"] {
        let answer = exchange_with(host, identity.client_config(), address(&world, host), &drop).unwrap();
        assert!(answer.starts_with("HTTP/1.1 409 "), "{host}: {answer}");
    }
    world.kill_host("a");
    redis.wait_for_progress(30);
    assert_eq!(redis.stop().error, None);
}

/// As a host that somebody has broken into would.
#[test]
fn a_hosts_certificate_does_not_entitle_to_what_operators_do() {
    let world = World::of(&["a", "b"]);
    let address = address(&world, "a");
    let b = Identity::load(&world.path("b").join("keys")).unwrap();
    let json = "Content-Type: application/json\r\n";
    for (method, path) in [
        ("POST", "/v1/host/stop"),
        ("GET", "/v1/hosts"),
        ("DELETE", "/v1/hosts/b"),
        ("GET", "/v1/vms"),
        ("POST", "/v1/vms"),
        ("GET", "/v1/vms/x"),
        ("DELETE", "/v1/vms/x"),
        ("POST", "/v1/vms/x/start"),
        ("POST", "/v1/vms/x/stop"),
        ("POST", "/v1/vms/x/reboot"),
        ("GET", "/v1/vms/x/console"),
        ("GET", "/v1/vms/x/snapshots"),
        ("POST", "/v1/vms/x/snapshots"),
        ("DELETE", "/v1/vms/x/snapshots/y"),
        ("POST", "/v1/vms/x/snapshots/y/restore"),
        ("GET", "/v1/vms/x/ft/price"),
        ("POST", "/v1/vms/x/ft/on"),
    ] {
        let answer = exchange(b.client_config(), address, &request(method, path, json, "{}")).unwrap();
        assert!(answer.starts_with("HTTP/1.1 403 "), "{method} {path}: {answer}");
        assert!(answer.contains("an operator's certificate") && answer.contains("host b"), "{method} {path}: {answer}");
        assert!(answer.contains("twinvm operator issue"), "{method} {path}: {answer}");
    }
    for path in ["/v1/host", "/v1/replicas"] {
        let answer = exchange(b.client_config(), address, &request("GET", path, "", "")).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
    }
    // An operator is no host.
    let operator = Identity::load_operator(&world.operator()).unwrap();
    for (method, path) in
        [("GET", "/v1/vms/x/boot/kernel"), ("PUT", "/v1/secondaries/x"), ("DELETE", "/v1/secondaries/x")]
    {
        let answer = exchange(operator.client_config(), address, &request(method, path, json, "{}")).unwrap();
        assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("operator admin"), "{method} {path}: {answer}");
    }
    let without = world.refused_without_operator("b", &["vm", "list"]);
    assert!(without.contains("twinvm operator issue"), "{without}");
}

/// A VM whose kernel was the authority's key could be created, and the key read by the route for boot files.
#[test]
fn a_key_of_a_host_is_never_the_kernel_of_a_vm() {
    let world = World::of(&["a", "b"]);
    let key = world.path("a").join("authority/ca.key");
    let link = world.path("a").join("files/vmlinuz");
    std::os::unix::fs::symlink(&key, &link).unwrap();
    let hard = world.path("a").join("files/bzImage");
    std::fs::hard_link(&key, &hard).unwrap();
    let operator = Identity::load_operator(&world.operator()).unwrap();
    for kernel in [&key, &link, &hard] {
        let spec = format!("name = \"x\"\nmemory = \"128M\"\nkernel = \"{}\"\n", kernel.display());
        let body = serde_json::json!({ "spec": spec }).to_string();
        let create = request("POST", "/v1/vms", "Content-Type: application/json\r\n", &body);
        let answer = exchange(operator.client_config(), address(&world, "a"), &create).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{}: {answer}", kernel.display());
        assert!(answer.contains("vm_folders") || answer.contains("only host a itself"), "{answer}");
        assert!(!world.path("a").join("vms/x").exists());
    }

    // The second step: a host that is not to hold a secondary reads no VM's kernel, whatever it is.
    let kernel = world.path("a").join("files/kernel");
    std::fs::write(&kernel, "secret").unwrap();
    let spec = world.path("x.toml");
    std::fs::write(&spec, format!("name = \"x\"\nmemory = \"128M\"\nkernel = \"{}\"\n", kernel.display())).unwrap();
    world.done("a", &["vm", "create", spec.to_str().unwrap()]);
    let b = Identity::load(&world.path("b").join("keys")).unwrap();
    let boot = request("GET", "/v1/vms/x/boot/kernel", "", "");
    let answer = exchange(b.client_config(), address(&world, "a"), &boot).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 ") && !answer.contains("secret"), "{answer}");
}

/// A client that was sent on goes there with its own certificate, and a host has nothing with which it could go instead.
#[test]
fn an_operator_is_sent_on_to_the_home_of_a_vm() {
    let world = World::of(&["a", "b"]);
    let kernel = world.path("a").join("files/kernel");
    std::fs::write(&kernel, "kernel").unwrap();
    let spec = world.path("x.toml");
    std::fs::write(&spec, format!("name = \"x\"\nmemory = \"128M\"\nkernel = \"{}\"\n", kernel.display())).unwrap();
    world.done("a", &["vm", "create", spec.to_str().unwrap()]);
    let operator = Identity::load_operator(&world.operator()).unwrap();
    let price = request("GET", "/v1/vms/x/ft/price", "", "");
    let answer = exchange_with("b", operator.client_config(), address(&world, "b"), &price).unwrap();
    assert!(answer.starts_with("HTTP/1.1 307 "), "{answer}");
    let there = format!("location: https://{}/v1/vms/x/ft/price", address(&world, "a"));
    assert!(answer.contains(&there) && answer.contains("x-twinvm-host: a"), "{answer}");
    // Commands follow.
    assert!(world.refused("b", &["vm", "stop", "x"]).contains("does not run"));
    world.done("b", &["vm", "rm", "x", "--yes"]);
}
