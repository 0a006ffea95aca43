//! What happens to the machines, one thing after the other, under clients that are outside of them.

use std::thread;
use std::time::Duration;

use crate::client::{Client, wait_for_service};
use crate::cluster::{BOOKS, Cluster, SHOP};
use crate::ledger::Ledger;
use crate::page::HOSTS;

/// Increments that the client sees acknowledged between two faults, and commits.
const PROGRESS: u64 = 20;

/// The protected Redis, and its client: one connection that has to live as long as one replica does.
pub struct Trial {
    cluster: Cluster,
    client: Client,
}

impl Trial {
    /// Machines that were set up, with the page's VM protected, and a client that counts.
    pub fn begin() -> Self {
        let mut cluster = Cluster::boot();
        cluster.follow("Setting up three hosts", &[0, 1, 2]);
        cluster.let_all_hosts_be_asked();
        cluster.follow("A protected VM", &[0]);
        cluster.wait_until_protected(SHOP);
        wait_for_service(cluster.redis());
        let client = Client::start(cluster.redis());
        let trial = Self { cluster, client };
        trial.client.wait_for_progress(PROGRESS);
        trial
    }

    /// Waits until the client goes on.
    fn goes_on(&self, how: &str) {
        self.client.wait_for_progress(PROGRESS);
        self.cluster.say(&format!("the client goes on {how}: {} increments", self.client.acknowledged()));
    }

    /// A machine loses its power and gets it back.
    fn lose(&mut self, number: usize) {
        self.cluster.cut_power(number);
        self.goes_on(&format!("without {}", HOSTS[number]));
        self.cluster.power_on(number);
        self.cluster.wait_until_protected(SHOP);
        self.goes_on("protected");
    }

    /// The primary's machine is lost.
    pub fn lose_the_primary(&mut self) {
        let [primary, secondary] = self.cluster.wait_until_protected(SHOP);
        self.lose(primary);
        assert_eq!(self.cluster.wait_until_protected(SHOP)[0], secondary);
    }

    /// The secondary's machine is lost.
    pub fn lose_the_secondary(&mut self) {
        let [primary, secondary] = self.cluster.wait_until_protected(SHOP);
        self.lose(secondary);
        assert_eq!(self.cluster.wait_until_protected(SHOP)[0], primary);
    }

    /// The machine is lost on which etcd's leader is.
    pub fn lose_the_leader(&mut self) {
        self.cluster.wait_until_protected(SHOP);
        let leader = self.cluster.etcd_leader();
        self.cluster.say(&format!("etcd's leader is on {}", HOSTS[leader]));
        self.lose(leader);
    }

    /// The primary's machine is lost, and then, when the VM is protected on the two that are left and the first one is back, that of the next primary.
    pub fn lose_two_in_turn(&mut self) {
        let [first, second] = self.cluster.wait_until_protected(SHOP);
        self.cluster.cut_power(first);
        self.goes_on("on the second");
        self.cluster.wait_until_protected(SHOP);
        self.cluster.power_on(first);
        self.cluster.cut_power(second);
        self.goes_on("on the third");
        self.cluster.power_on(second);
        self.cluster.wait_until_protected(SHOP);
    }

    /// The switch port of the primary's machine is closed: it runs, and nobody hears from it, until the port is opened.
    pub fn close_the_primarys_port(&mut self) {
        let [primary, secondary] = self.cluster.wait_until_protected(SHOP);
        self.cluster.say(&format!("the port of {} is closed", HOSTS[primary]));
        self.cluster.hosts[primary].set_port(false);
        self.goes_on("on the other side");
        self.cluster.say(&format!("the port of {} is open", HOSTS[primary]));
        self.cluster.hosts[primary].set_port(true);
        assert_eq!(self.cluster.wait_until_protected(SHOP)[0], secondary);
        self.goes_on("protected");
    }

    /// The primary's machine is stopped for 10 s, and goes on as if nothing had happened.
    pub fn stop_the_primary_for_a_while(&mut self) {
        let [primary, secondary] = self.cluster.wait_until_protected(SHOP);
        self.cluster.say(&format!("{} is stopped", HOSTS[primary]));
        self.cluster.hosts[primary].set_running(false);
        thread::sleep(Duration::from_secs(10));
        self.goes_on("on the other side");
        self.cluster.say(&format!("{} is continued", HOSTS[primary]));
        self.cluster.hosts[primary].set_running(true);
        assert_eq!(self.cluster.wait_until_protected(SHOP)[0], secondary);
        self.goes_on("protected");
    }

    /// The client's connection was the same all the time, and each reply the one that was due.
    pub fn end(self) -> Cluster {
        let outcome = self.client.stop();
        assert!(outcome.error.is_none(), "{outcome:?}");
        self.cluster
    }
}

/// All machines lose their power at once, and come back: PostgreSQL has every commit that it acknowledged.
pub fn lose_all(cluster: &mut Cluster) {
    cluster.create_books();
    let ledger = Ledger::start(cluster.postgresql());
    ledger.wait_for_progress(PROGRESS);
    cluster.hosts[0].done(&format!("twinvm ft on {BOOKS}"));
    cluster.wait_until_protected(BOOKS);
    ledger.wait_for_progress(PROGRESS);
    for number in 0..HOSTS.len() {
        cluster.cut_power(number);
    }
    let committed = ledger.committed();
    for host in &mut cluster.hosts {
        host.power_on();
    }
    for number in 0..HOSTS.len() {
        cluster.wait_for_boot(number);
    }
    cluster.start(BOOKS);
    ledger.assert_holds(committed);
    cluster.say(&format!("PostgreSQL has the {committed} commits that it acknowledged"));
    cluster.wait_until_protected(BOOKS);
}
