//! Consoles and their clients.

use super::history::HISTORY_BYTES_MAX;
use super::*;

/// The line that a client is told first.
fn line(client: &mut impl Read) -> String {
    let mut line = String::new();
    while !line.ends_with('\n') {
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        line.push(byte[0].into());
    }
    line
}

/// The place in it.
fn place(client: &mut impl Read) -> ConsolePlace {
    serde_json::from_str(&line(client)).unwrap()
}

#[test]
fn clients_see_what_was_written_before_and_after_they_came() {
    let mut console = Console::new(7);
    console.write(&[b'x'; HISTORY_BYTES_MAX]);
    console.write(b"login: ");
    let (mut client, served) = UnixStream::pair().unwrap();
    let serving = std::thread::spawn({
        let console = console.clone();
        move || console.serve(served, ConsoleVisit::default())
    });
    assert_eq!(place(&mut client), ConsolePlace { run: 7, bytes: 7 });
    let mut seen = vec![0; HISTORY_BYTES_MAX];
    client.read_exact(&mut seen).unwrap();
    assert!(seen.ends_with(b"xlogin: "));
    console.write(b"root");
    let mut more = [0; 4];
    client.read_exact(&mut more).unwrap();
    assert_eq!(&more, b"root");
    drop(client);
    serving.join().unwrap().unwrap();
    console.write(b"nobody sees this");
    assert_eq!(console.inner().clients, 0);
}

#[test]
fn what_the_guest_has_no_room_for_waits_and_nothing_typed_is_lost() {
    const TYPED_BYTES: usize = 405_715;
    let control = Control::new().unwrap();
    let console = Console::new(7);
    console.attach(control.clone());
    let (mut client, served) = UnixStream::pair().unwrap();
    let serving = std::thread::spawn(move || console.serve(served, ConsoleVisit::default()));
    let typing = std::thread::spawn(move || {
        place(&mut client);
        let typed: Vec<u8> = (0..TYPED_BYTES).map(|number| number as u8).collect();
        client.write_all(&typed).unwrap();
        client
    });
    let mut taken = Vec::new();
    while taken.len() < TYPED_BYTES {
        taken.extend(control.take_console(1000));
    }
    assert!(taken.iter().enumerate().all(|(number, byte)| *byte == number as u8));
    // One that leaves while its input waits is not waited for.
    let mut client = typing.join().unwrap();
    client.write_all(&vec![0; 64 << 10]).unwrap();
    client.write_all(b"one more").unwrap();
    drop(client);
    serving.join().unwrap().unwrap();
}

/// What was kept was written to a client while the guest's own output waited for the same lock.
#[test]
fn row_16_a_client_that_does_not_read_is_not_waited_for_and_comes_again_for_what_it_missed() {
    let console = Console::new(7);
    let (mut client, served) = UnixStream::pair().unwrap();
    // It holds less than what is kept: whoever writes all of that at once has to wait for a reader.
    rustix::net::sockopt::set_socket_send_buffer_size(&served, 4096).unwrap();
    let serving = std::thread::spawn({
        let mut console = console.clone();
        console.write(&[b'h'; HISTORY_BYTES_MAX]);
        move || console.serve(served, ConsoleVisit::default())
    });
    assert_eq!(place(&mut client), ConsolePlace { run: 7, bytes: 0 });
    let (written, is_written) = std::sync::mpsc::channel();
    std::thread::spawn({
        let mut console = console.clone();
        move || {
            for _ in 0..1000 {
                console.write(&[b'x'; 4096]);
            }
            written.send(()).unwrap();
        }
    });
    is_written.recv_timeout(Duration::from_secs(60)).expect("the guest waits for the client");
    // It is behind by more than is kept: neither what it reads nor what it types goes on, and what it has read, if anything, is what was first, without a gap.
    let mut seen = Vec::new();
    client.read_to_end(&mut seen).unwrap();
    let history = seen.iter().take_while(|byte| **byte == b'h').count();
    assert!(history == seen.len() || history == HISTORY_BYTES_MAX, "{history} of {}", seen.len());
    assert!(seen.iter().skip(history).all(|byte| *byte == b'x'));
    assert!(client.write_all(b"root").is_err());
    serving.join().unwrap().unwrap();
}

/// One that was slow lost the end of the answer.
#[test]
fn row_17_a_client_that_has_typed_all_and_reads_late_is_shown_all_of_the_answer() {
    let mut console = Console::new(7);
    let (mut client, served) = UnixStream::pair().unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(&served, 4096).unwrap();
    let serving = std::thread::spawn({
        let console = console.clone();
        move || console.serve(served, ConsoleVisit::default())
    });
    console.write(&[b'x'; HISTORY_BYTES_MAX - 7]);
    console.write(b"the end");
    client.shutdown(Shutdown::Write).unwrap();
    std::thread::sleep(SILENCE * 2);
    place(&mut client);
    let mut seen = String::new();
    client.read_to_string(&mut seen).unwrap();
    assert!(seen.len() == HISTORY_BYTES_MAX && seen.ends_with("the end"), "{}", seen.len());
    serving.join().unwrap().unwrap();
}

#[test]
fn a_client_that_comes_again_sees_each_byte_once() {
    let mut console = Console::new(7);
    console.write(b"boot login: ");
    let connect = |seen| {
        let (client, served) = UnixStream::pair().unwrap();
        let console = console.clone();
        std::thread::spawn(move || console.serve(served, ConsoleVisit { seen, typist: None }));
        client
    };
    let mut client = connect(ConsolePlace { run: 7, bytes: 5 });
    assert_eq!(place(&mut client), ConsolePlace { run: 7, bytes: 5 });
    client.shutdown(Shutdown::Write).unwrap();
    let mut seen = String::new();
    client.read_to_string(&mut seen).unwrap();
    assert_eq!(seen, "login: ");
    // Of another run it has seen nothing.
    let mut client = connect(ConsolePlace { run: 6, bytes: 5 });
    assert_eq!(place(&mut client), ConsolePlace { run: 7, bytes: 0 });
}

/// What was piped in was lost as soon as the client had closed its end, if the guest was slower.
#[test]
fn what_was_typed_before_the_end_of_input_reaches_a_slow_guest_and_is_answered() {
    const TYPED_BYTES: usize = 405_715;
    let control = Control::new().unwrap();
    let mut console = Console::new(7);
    console.attach(control.clone());
    let (mut client, served) = UnixStream::pair().unwrap();
    let serving = std::thread::spawn({
        let console = console.clone();
        move || console.serve(served, ConsoleVisit::default())
    });
    let typing = std::thread::spawn(move || {
        client.write_all(&vec![b'x'; TYPED_BYTES]).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut seen = String::new();
        client.read_to_string(&mut seen).unwrap();
        seen
    });
    let mut taken = 0;
    while taken < TYPED_BYTES {
        taken += control.take_console(1000).len();
        // Slower than whoever types.
        std::thread::sleep(Duration::from_millis(1));
    }
    console.write(b"405715 bytes");
    assert!(typing.join().unwrap().ends_with("405715 bytes"));
    serving.join().unwrap().unwrap();
}

#[test]
fn a_guest_that_is_never_silent_does_not_keep_a_client_that_has_typed_all() {
    let mut console = Console::new(7);
    let (mut client, served) = UnixStream::pair().unwrap();
    let serving = std::thread::spawn({
        let console = console.clone();
        move || console.serve(served, ConsoleVisit::default())
    });
    client.shutdown(Shutdown::Write).unwrap();
    let reading = std::thread::spawn(move || std::io::copy(&mut client, &mut std::io::sink()).unwrap());
    while !serving.is_finished() {
        console.write(b"tick\n");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(reading.join().unwrap() > 0);
}

#[test]
fn the_log_holds_what_was_written_before_this_replica_ran_the_guest_and_since() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console.log");
    let mut console = Console::new(7);
    let from = ConsolePlace { run: 3, bytes: 900 };
    console.go_on_with(&ConsolePiece { from, bytes: b"booted\n".to_vec() });
    console.log_to(&path, "taken over");
    // A second time, after a reset of the guest, changes nothing.
    console.log_to(&path, "again");
    console.write(b"login: ");
    console.end_log();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "\ntwinvm: taken over\nbooted\nlogin: ");
}

/// A console whose guest reads nothing, and a client of it by this number, who has typed `typed`; and what it was told first.
fn typist(console: &Console, number: u64, typed: &[u8]) -> (UnixStream, ConsoleStart) {
    let (mut client, served) = UnixStream::pair().unwrap();
    let visit = ConsoleVisit { seen: ConsolePlace::default(), typist: Some(number) };
    std::thread::spawn({
        let console = console.clone();
        move || console.serve(served, visit)
    });
    let start = serde_json::from_str(&line(&mut client)).unwrap();
    client.write_all(typed).unwrap();
    (client, start)
}

/// What a client had typed in the moment of a switchover was lost: on its way, or waiting for the guest.
#[test]
fn row_17_what_is_typed_while_the_guest_is_handed_over_arrives_once() {
    let [before, after] = [7, 7].map(Console::new);
    let control = Control::new().unwrap();
    before.attach(control.clone());
    let (mut first, start) = typist(&before, 1, b"root\n");
    assert_eq!(start.taken, None);
    while control.console_input().len() < 5 {
        std::thread::sleep(Duration::from_millis(1));
    }
    // The guest has read some of it.
    control.take_console(2);
    let _silent = typist(&before, 2, b"");
    let input = ConsoleHistory::hand_over(&before);
    assert_eq!(input, ConsoleInput { waiting: b"ot\n".to_vec(), taken: vec![(1, 5), (2, 0)] });
    first.write_all(b"ls\n").unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(control.console_input(), b"ot\n", "typed into a guest that is gone");
    after.take_over(input);
    let control_after = Control::new().unwrap();
    after.attach(control_after.clone());
    let (_first, start) = typist(&after, 1, b"ls\n");
    assert_eq!(start.taken, Some(5));
    while control_after.console_input().len() < 6 {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(control_after.console_input(), b"ot\nls\n");
    assert_eq!((typist(&after, 2, b"").1.taken, typist(&after, 3, b"").1.taken), (Some(0), None));
    // One that keeps its guest after all takes what has waited.
    ConsoleHistory::keep(&before);
    while control.console_input().len() < 6 {
        std::thread::sleep(Duration::from_millis(1));
    }
}
