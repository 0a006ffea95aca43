//! The three machines as a cluster, set up by following the page.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::HUNG;
use crate::host::Host;
use crate::network::Network;
use crate::page::{Deed, HOSTS, Step, steps};
use crate::support::guest::{image, images_dir};
use crate::support::images;
use crate::system;

/// The page's VM, and where its Redis answers.
pub const SHOP: &str = "shop";
const REDIS: &str = "192.0.2.50:6379";
/// A VM that is like it, and where its PostgreSQL answers.
pub const BOOKS: &str = "books";
const POSTGRESQL: &str = "192.0.2.51:5432";

/// How often it is looked whether something has come about: each look takes a command in a slow machine.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What the page says to change where machines are slow: the silence after which a replica takes the other one for lost, and after which etcd's members
/// take their leader for lost. Done after the commands that contain the first text.
const SETTINGS: [(&str, &str); 3] = [
    ("twinvm cluster init ", "sed -i 's/^suspicion_ms = .*/suspicion_ms = 3000/' $TWINVM_HOME/host/host.toml"),
    ("twinvm host join ", "sed -i 's/^suspicion_ms = .*/suspicion_ms = 3000/' $TWINVM_HOME/host/host.toml"),
    (
        "cp /etc/twinvm/etcd/twinvm-etcd.service ",
        "sed -i 's/^heartbeat-interval: .*/heartbeat-interval: 250/; s/^election-timeout: .*/election-timeout: 2500/' \
         /etc/twinvm/etcd/etcd.yml",
    ),
];

/// What a new root shell is told, as an administrator's profile would.
const PROFILE: &str = "export TWINVM_HOME=/var/lib/twinvm";

/// The machines; powered off when dropped.
pub struct Cluster {
    pub hosts: Vec<Host>,
    network: Arc<Network>,
    /// What `twinvm host token` has printed last.
    token: String,
    started: Instant,
    _folder: TempDir,
}

impl Cluster {
    /// Boots machines on which nothing was done yet, but what an administrator has: root can log in from one to the other.
    pub fn boot() -> Self {
        // Packages come from outside; what is built then is found there.
        let build = steps("A protected VM").into_iter().find_map(|step| match step.deed {
            Deed::Run(command) => command.strip_prefix("twinvm ").map(str::to_owned),
            Deed::Write { .. } => None,
        });
        let build = build.unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_twinvm"));
        command.args(build.split_whitespace()).env("TWINVM_HOME", images_dir().parent().unwrap());
        assert!(command.status().unwrap().success(), "{build}");
        let postgresql = image(&images::postgresql()).manifest().spec.name.clone();
        let folder = TempDir::new_in(images_dir().parent().unwrap()).unwrap();
        let (system, job) = (system::system(), system::job(&["redis", &postgresql], folder.path()));
        let network = Arc::new(Network::new(&[REDIS, POSTGRESQL].map(|service| service.parse().unwrap())));
        let new = |number| Host::new(number, &system, &job, &network, folder.path());
        let hosts = (0..HOSTS.len()).map(new).collect();
        let mut cluster = Self { hosts, network, token: String::new(), started: Instant::now(), _folder: folder };
        for host in &mut cluster.hosts {
            host.power_on();
        }
        for host in &mut cluster.hosts {
            host.wait_until_ready();
        }
        cluster.let_root_log_in();
        cluster
    }

    /// Says on standard output what is going on, and how long it has been.
    pub fn say(&self, what: &str) {
        say(self.started, what);
    }

    fn let_root_log_in(&mut self) {
        let key =
            self.hosts[0].done("ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id_ed25519 && cat ~/.ssh/id_ed25519.pub");
        for host in &mut self.hosts {
            host.done(&format!("mkdir -p -m 700 ~/.ssh && echo '{}' >> ~/.ssh/authorized_keys", key.trim()));
        }
        self.hosts[0].done("printf 'StrictHostKeyChecking accept-new\\nBatchMode yes\\n' > ~/.ssh/config");
    }

    /// Does what a section of the page says. What is not said of one host is done on `hosts`, on all of them at the same time.
    pub fn follow(&mut self, heading: &str, hosts: &[usize]) {
        for Step { host, deed } in steps(heading) {
            let (started, token) = (self.started, &self.token);
            let Some(number) = host else {
                let on = self.hosts.iter_mut().enumerate().filter(|(number, _)| hosts.contains(number));
                thread::scope(|scope| {
                    for (_, host) in on {
                        let deed = deed.with_address(&host.address());
                        scope.spawn(move || carry_out(host, &deed, started));
                    }
                });
                continue;
            };
            let output = carry_out(&mut self.hosts[number], &deed.with_token(token), started);
            if matches!(&deed, Deed::Run(command) if command.starts_with("twinvm host token ")) {
                self.token = output.trim().to_owned();
            }
        }
    }

    /// Lets commands be given on every host, as the page says: with the operator's keys in the host's folder.
    pub fn let_all_hosts_be_asked(&mut self) {
        for address in [1, 2].map(|number: usize| self.hosts[number].address()) {
            self.hosts[0].done(&format!("scp -q alice.pem root@{address}:/var/lib/twinvm/host/operator.pem"));
        }
    }

    /// Where clients reach the VM's Redis from outside.
    pub fn redis(&self) -> SocketAddr {
        self.network.address_of(REDIS.parse().unwrap())
    }

    /// Where clients reach the PostgreSQL of the other VM.
    pub fn postgresql(&self) -> SocketAddr {
        self.network.address_of(POSTGRESQL.parse().unwrap())
    }

    /// Creates the VM with PostgreSQL, with a spec like that of the page's, and starts it.
    pub fn create_books(&mut self) {
        let is_spec = |command: &String| command.starts_with("cat > shop.toml");
        let commands = steps("A protected VM").into_iter().filter_map(|step| match step.deed {
            Deed::Run(command) => Some(command),
            Deed::Write { .. } => None,
        });
        let spec = commands.into_iter().find(is_spec).unwrap();
        let image = format!("\"{}\"", images::postgresql().name);
        self.hosts[0].done(&spec.replace(SHOP, BOOKS).replace("\"redis\"", &image).replace("192.0.2.50", "192.0.2.51"));
        self.hosts[0].done(&format!("twinvm vm create {BOOKS}.toml --start"));
    }

    /// Boots a machine that has lost its power, and waits until its host is alive for the others: so etcd has a majority when another one loses its power.
    pub fn power_on(&mut self, number: usize) {
        self.say(&format!("{} gets power", HOSTS[number]));
        self.hosts[number].power_on();
        self.wait_for_boot(number);
        let deadline = Instant::now() + HUNG;
        while !self.is_alive(number) {
            assert!(Instant::now() < deadline, "host {} is not alive\n{}", HOSTS[number], self.logs());
            thread::sleep(LOOK_INTERVAL);
        }
        self.say(&format!("{} is alive", HOSTS[number]));
    }

    /// Whether a host says of itself that it is alive, so that its daemon and its member of etcd are at work.
    fn is_alive(&mut self, number: usize) -> bool {
        let (name, hosts) = (HOSTS[number], self.hosts[number].json("twinvm host list"));
        let hosts = hosts.as_ref().and_then(Value::as_array);
        hosts.is_some_and(|hosts| hosts.iter().any(|host| host["name"] == name && host["alive"] == true))
    }

    /// Waits until a machine takes commands.
    pub fn wait_for_boot(&mut self, number: usize) {
        self.hosts[number].wait_until_ready();
        self.hosts[number].done(PROFILE);
    }

    /// Takes a machine's power away.
    pub fn cut_power(&mut self, number: usize) {
        self.say(&format!("{} loses its power", HOSTS[number]));
        self.hosts[number].cut_power();
    }

    /// What a command prints as JSON on the first host that has power and where it succeeds.
    pub fn ask(&mut self, command: &str) -> Option<Value> {
        self.hosts.iter_mut().filter(|host| host.is_on()).find_map(|host| host.json(command))
    }

    /// Waits until the VM is protected, by replicas on hosts that have power; their numbers, the primary's first.
    pub fn wait_until_protected(&mut self, vm: &str) -> [usize; 2] {
        let deadline = Instant::now() + HUNG;
        loop {
            let status = self.ask(&format!("twinvm ft status {vm}"));
            let replicas = status.as_ref().and_then(|status| self.protected_by(status));
            if let Some([primary, secondary]) = replicas {
                self.say(&format!(
                    "{vm} is protected: primary on {}, secondary on {}",
                    HOSTS[primary], HOSTS[secondary]
                ));
                return [primary, secondary];
            }
            assert!(Instant::now() < deadline, "not protected: {status:#?}\n{}", self.logs());
            thread::sleep(LOOK_INTERVAL);
        }
    }

    /// The number of the machine with etcd's leader.
    pub fn etcd_leader(&mut self) -> usize {
        let deadline = Instant::now() + HUNG;
        let keys = "--cacert /etc/twinvm/etcd/member-ca.pem --cert /etc/twinvm/etcd/member.pem --key /etc/twinvm/etcd/member.key";
        loop {
            let leads = |host: &mut Host| {
                let metrics = format!("curl -s {keys} https://{}:2379/metrics", host.address());
                host.run(&format!("{metrics} | grep -q '^etcd_server_is_leader 1$'")).0 == 0
            };
            if let Some(leader) = self.hosts.iter_mut().position(leads) {
                return leader;
            }
            assert!(Instant::now() < deadline, "etcd has no leader\n{}", self.logs());
            thread::sleep(LOOK_INTERVAL);
        }
    }

    /// Starts the VM that is off, as soon as the cluster can.
    pub fn start(&mut self, vm: &str) {
        let deadline = Instant::now() + HUNG;
        loop {
            let (status, output) = self.hosts[0].run(&format!("twinvm vm start {vm}"));
            if status == 0 {
                return;
            }
            assert!(Instant::now() < deadline, "{output}\n{}", self.logs());
            thread::sleep(LOOK_INTERVAL);
        }
    }

    /// The hosts of the replicas, if a status says that it is protected.
    fn protected_by(&self, status: &Value) -> Option<[usize; 2]> {
        let number = |name: &Value| HOSTS.iter().position(|host| name == host);
        let replicas = [number(&status["host"])?, number(&status["secondary"])?];
        let is_whole = status["protection"]["state"] == "protected" && replicas.iter().all(|&n| self.hosts[n].is_on());
        is_whole.then_some(replicas)
    }

    /// What the machines' services and replicas have logged last.
    pub fn logs(&mut self) -> String {
        let show = "journalctl -b --no-pager -n 40 -u twinvm -u twinvm-etcd -o cat; tail -n 30 /var/lib/twinvm/host/vms/*/replica.log";
        let log = |host: &mut Host| {
            let (_, log) = host.run(show);
            format!("--- host {}\n{log}\n", host.name)
        };
        self.hosts.iter_mut().filter(|host| host.is_on()).map(log).collect()
    }
}

/// Does what the page says on a host, with the settings that go with it; what a command has printed.
fn carry_out(host: &mut Host, deed: &Deed, started: Instant) -> String {
    let name = host.name;
    match deed {
        Deed::Write { path, text } => {
            say(started, &format!("{name}: writes {path}"));
            host.done(&format!("cat > {path} <<'END OF FILE'\n{text}END OF FILE"))
        }
        Deed::Run(command) => {
            say(started, &format!("{name}# {}", command.lines().next().unwrap_or_default()));
            let output = host.done(command);
            if !output.trim().is_empty() {
                println!("{}", output.trim_end());
            }
            for (_, setting) in SETTINGS.iter().filter(|(after, _)| command.contains(after)) {
                host.done(setting);
            }
            output
        }
    }
}

fn say(started: Instant, what: &str) {
    println!("[{:5.0} s] {what}", started.elapsed().as_secs_f64());
}
