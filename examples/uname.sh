# The guest has a kernel of its own, and the program is nobody special in it.
uname -a
id
df -h / | tail -n 1
