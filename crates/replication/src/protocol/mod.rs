//! Who may release output, and who takes over: a pure state machine.
