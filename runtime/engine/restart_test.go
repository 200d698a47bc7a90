package engine_test

const daemonEnv = "EDGED_ENGINE_TEST_DAEMON"

func daemonMain() {}
