"""Programs that the tests build: small ones, so that the compiler is the smaller part of a test."""

from tests.support.processes import REPOSITORY

ECHO = {p.name: p.read_text() for p in sorted((REPOSITORY / "examples/echo-agent").iterdir())}
MOD = "module agent\n\ngo 1.25\n"

#: An HTTP server out of system calls alone: it compiles in a fraction of the time that net/http takes.
_TINY = """
package main

import "syscall"

func get(name string) string {
	value, _ := syscall.Getenv(name)
	return value
}

func itoa(n int) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return itoa(n/10) + itoa(n%10)
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	if get("MODE") == "crash" {
		println("boom")
		syscall.Exit(3)
	}
	port := 0
	for _, digit := range get("PORT") {
		port = port*10 + int(digit-'0')
	}
	door, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	check(err)
	check(syscall.Bind(door, &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}))
	check(syscall.Listen(door, 128))
	body := `{"version": "VERSION", "instance": "` + get("SLIPWAY_INSTANCE") + `", "digest": "` + get("SLIPWAY_DIGEST") +
		`", "word": "` + get("WORD") + `", "secret": "` + itoa(len(get("SECRET"))) + `"}`
	head := "HTTP/1.1 STATUS Said\\r\\nContent-Type: application/json\\r\\nConnection: close\\r\\nContent-Length: "
	answer := []byte(head + itoa(len(body)) + "\\r\\n\\r\\n" + body)
	for {
		caller, _, err := syscall.Accept(door)
		if err != nil {
			continue
		}
		var request [8192]byte
		syscall.Read(caller, request[:])
		syscall.Write(caller, answer)
		syscall.Close(caller)
	}
}
"""


def tiny(version: str = "1", status: int = 200) -> dict[str, str]:
    """Return a server that answers every request with this status, its version, instance and digest."""
    return program(_TINY.replace("VERSION", version).replace("STATUS", str(status)))


def program(main: str, mod: str | None = MOD) -> dict[str, str]:
    """Return a source of one file."""
    return {"main.go": main.lstrip()} | ({"go.mod": mod} if mod else {})
