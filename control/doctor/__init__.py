"""The doctor: says what is out of step in the cloud and why, and puts it right on command.

It knows no noun itself: each service hands over checks of its own (kernel.findings), main.py passes them in. It keeps nothing in
the store. The leader looks at everything now and then and logs what it finds; it repairs nothing unasked.
"""
