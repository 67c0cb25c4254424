# Plays a person at a terminal: argv[1] is a list, as JSON, of what to wait for and what to type then; the rest is the
# command. Prints all that the terminal showed, and ends as the command did.
import json, os, pty, select, sys, time

script = json.loads(sys.argv[1])
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[2], sys.argv[2:])
shown, seen, end = b"", 0, time.monotonic() + 60
while True:
    if script:
        wanted, answer = script[0]
        at = shown.find(wanted.encode(), seen)
        if at >= 0:
            seen = at + len(wanted)
            os.write(terminal, answer.encode())
            script.pop(0)
            continue
    if time.monotonic() > end:
        sys.exit("waited in vain for %r in:\n%s" % (script[:1], shown.decode(errors="replace")))
    if select.select([terminal], [], [], 1)[0]:
        try:
            more = os.read(terminal, 4096)
        except OSError:
            break
        if not more:
            break
        shown += more
_, status = os.waitpid(pid, 0)
sys.stdout.write(shown.decode(errors="replace"))
sys.exit(os.waitstatus_to_exitcode(status) & 0xff)
