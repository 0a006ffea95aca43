//! Real etcd members, on ports of this machine and in a folder of their own.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use cluster::store::{EtcdAddress, EtcdKeys, EtcdStore, Store};
use tempfile::TempDir;

/// Longer than anything takes that does not hang.
const HUNG: Duration = Duration::from_secs(60);

/// Where a member is.
#[derive(Clone)]
pub struct Place {
    /// In this network namespace; where the test is, if none.
    pub namespace: Option<String>,
    /// Its address.
    pub ip: String,
    /// Its ports: for clients, for the other members.
    pub ports: (u16, u16),
}

/// An etcd cluster.
pub struct Members {
    folder: TempDir,
    places: Vec<Place>,
    processes: Vec<Option<Child>>,
    keys: Option<EtcdKeys>,
}

impl Members {
    /// So many members, once they answer.
    pub fn start(count: usize) -> Self {
        Self::start_with(count, None)
    }

    /// The same, with keys made in `folder` by which clients and members know each other.
    pub fn start_with(count: usize, keys: Option<EtcdKeys>) -> Self {
        // Held at the same time, so that they differ.
        let held: Vec<TcpListener> = (0..2 * count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports: Vec<u16> = held.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        drop(held);
        let place = |ports: &[u16]| Place { namespace: None, ip: "127.0.0.1".to_owned(), ports: (ports[0], ports[1]) };
        Self::start_at(ports.chunks(2).map(place).collect(), keys)
    }

    /// The same in these places.
    pub fn start_at(places: Vec<Place>, keys: Option<EtcdKeys>) -> Self {
        let processes = places.iter().map(|_| None).collect();
        let mut members = Self { folder: tempfile::tempdir().unwrap(), places, processes, keys };
        for number in 0..members.places.len() {
            members.launch(number, "new");
        }
        members.wait_until_served();
        members
    }

    fn launch(&mut self, number: usize, state: &str) {
        let scheme = if self.keys.is_some() { "https" } else { "http" };
        let place = &self.places[number];
        let client = format!("{scheme}://{}:{}", place.ip, place.ports.0);
        let peer = |place: &Place| format!("http://{}:{}", place.ip, place.ports.1);
        let peers: Vec<String> =
            self.places.iter().enumerate().map(|(number, place)| format!("m{number}={}", peer(place))).collect();
        let (name, peer) = (format!("m{number}"), peer(place));
        let log =
            File::options().append(true).create(true).open(self.folder.path().join(format!("{name}.log"))).unwrap();
        let mut command = match &place.namespace {
            None => Command::new("etcd"),
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace, "etcd"]);
                command
            }
        };
        command
            .args(["--name", &name, "--initial-cluster", &peers.join(","), "--initial-cluster-state", state])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args([
                "--heartbeat-interval",
                "50",
                "--election-timeout",
                "500",
                "--unsafe-no-fsync",
                "--bcrypt-cost",
                "4",
            ])
            .arg("--data-dir")
            .arg(self.folder.path().join(&name))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        if let Some(keys) = &self.keys {
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(&keys.ca);
            command.arg("--cert-file").arg(&keys.cert).arg("--key-file").arg(&keys.key);
        }
        let started = command.spawn().expect("etcd is there: `make setup` installs it");
        self.processes[number] = Some(started);
    }

    /// Waits until they answer.
    pub fn wait_until_served(&self) {
        let deadline = Instant::now() + HUNG;
        loop {
            match EtcdStore::open(&self.address(), self.keys.as_ref()) {
                Ok(_) => break,
                Err(error) => assert!(Instant::now() < deadline, "{error}\n{}", self.logs()),
            }
        }
    }

    fn logs(&self) -> String {
        let log = |name: usize| fs::read_to_string(self.folder.path().join(format!("m{name}.log"))).unwrap_or_default();
        (0..self.places.len()).map(|number| format!("m{number}:\n{}\n", log(number))).collect()
    }

    /// Where they are.
    pub fn address(&self) -> EtcdAddress {
        let members: Vec<String> = self.places.iter().map(|place| format!("{}:{}", place.ip, place.ports.0)).collect();
        format!("etcd://{}", members.join(",")).parse().unwrap()
    }

    /// The address that names members, or whoever stands before them, by ports.
    pub fn address_of(&self, ports: &[u16]) -> EtcdAddress {
        let members: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        format!("etcd://{}", members.join(",")).parse().unwrap()
    }

    /// A client's port of a member.
    pub fn port(&self, number: usize) -> u16 {
        self.places[number].ports.0
    }

    /// A client.
    pub fn client(&self) -> Arc<dyn Store> {
        Arc::new(EtcdStore::open(&self.address(), self.keys.as_ref()).unwrap())
    }

    /// Kills a member at once.
    pub fn kill(&mut self, number: usize) {
        let mut process = self.processes[number].take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Starts a member again that was killed.
    pub fn restart(&mut self, number: usize) {
        self.launch(number, "existing");
    }

    /// Keeps what a member that does not run has stored, aside.
    pub fn set_aside(&self, number: usize) {
        self.copy(&format!("m{number}"), &format!("aside{number}"));
    }

    /// Brings back what was set aside, as whoever restores an older copy.
    pub fn bring_back(&self, number: usize) {
        self.copy(&format!("aside{number}"), &format!("m{number}"));
    }

    fn copy(&self, from: &str, to: &str) {
        let _ = fs::remove_dir_all(self.folder.path().join(to));
        let copied = Command::new("cp").args(["-a", from, to]).current_dir(self.folder.path()).status().unwrap();
        assert!(copied.success());
    }

    /// Stops a member, or lets it go on.
    pub fn signal(&self, number: usize, signal: &str) {
        let pid = self.processes[number].as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([&format!("-{signal}"), &pid]).status().unwrap().success());
    }

    /// The member that leads.
    pub fn leader(&self) -> usize {
        let deadline = Instant::now() + HUNG;
        loop {
            for number in 0..self.places.len() {
                let status = self.ask(number, "/v3/maintenance/status", "{}");
                if let Some(status) = status
                    && status["leader"].is_string()
                    && status["leader"] == status["header"]["member_id"]
                {
                    return number;
                }
            }
            assert!(Instant::now() < deadline, "nobody leads");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Lets etcd forget what was before a revision.
    pub fn compact(&self, revision: u64) {
        let request = format!("{{\"revision\": \"{revision}\", \"physical\": true}}");
        assert!((0..self.places.len()).any(|number| self.ask(number, "/v3/kv/compaction", &request).is_some()));
    }

    /// Ends the leases of all clients' receipts.
    pub fn forget_receipts(&self) {
        let leases = self.ask(0, "/v3/lease/leases", "{}").unwrap();
        for lease in leases["leases"].as_array().unwrap() {
            assert!(self.ask(0, "/v3/lease/revoke", &lease.to_string()).is_some());
        }
    }

    /// Lets etcd refuse to store anything, as when its database is full.
    pub fn fill_up(&self) {
        let alarm = r#"{"action": "ACTIVATE", "memberID": "0", "alarm": "NOSPACE"}"#;
        self.alarm(alarm);
    }

    fn alarm(&self, request: &str) {
        assert!((0..self.places.len()).any(|number| self.ask(number, "/v3/maintenance/alarm", request).is_some()));
    }

    /// Lets etcd store again, as when somebody has made room.
    pub fn make_room(&self) {
        let alarm = r#"{"action": "DEACTIVATE", "memberID": "0", "alarm": "NOSPACE"}"#;
        self.alarm(alarm);
    }

    /// Asks one member, without TLS.
    fn ask(&self, number: usize, path: &str, request: &str) -> Option<serde_json::Value> {
        let place = &self.places[number];
        let url = format!("http://{}:{}{path}", place.ip, place.ports.0);
        let answer = Command::new("curl").args(["-sf", "-m", "2", "-d", request, &url]).output().unwrap();
        serde_json::from_slice(&answer.stdout).ok()
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().flatten() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Makes an authority, and one certificate that serves members and clients, in a folder.
pub fn make_keys(folder: &Path) -> EtcdKeys {
    let run = |arguments: &[&str]| {
        let output = Command::new("openssl").args(arguments).current_dir(folder).output().expect("openssl runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    run(&[&["req", "-x509"], &curve[..], &["-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=etcd"]]
        .concat());
    run(&[&["req"], &curve[..], &["-keyout", "host.key", "-out", "host.csr", "-subj", "/O=twinvm"]].concat());
    fs::write(folder.join("names"), "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n").unwrap();
    certify(folder, "host.pem", "2");
    let file = |name: &str| -> PathBuf { folder.join(name) };
    EtcdKeys { ca: file("ca.pem"), cert: file("host.pem"), key: file("host.key"), user: None }
}

/// Has the authority in a folder certify the key there for so many days.
pub fn certify(folder: &Path, out: &str, days: &str) {
    let sign = ["x509", "-req", "-in", "host.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"];
    let names = ["-out", out, "-days", days, "-extfile", "names"];
    let output = Command::new("openssl").args(sign).args(names).current_dir(folder).output().expect("openssl runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
